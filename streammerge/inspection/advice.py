"""What the numbers call for, in words. Every rule says where its threshold comes from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .numbers import OfAgent, ratio
from .result import Inspection

# Reinforcement learning changes 5 to 30 % of the weights, supervised finetuning most (arXiv:2505.11711). Half is
# what noise of 0.3 % of the weights' own size already changes in bfloat16; of 1 % it is 82 %.
DENSE = 0.5
# Two models that have nothing to do with each other differ by the square root of 2 times the norm of one. The three
# agents of the sample moved by 0.0007 to 0.0016 of it; quantizing comes to 0.007 (Q8_0), 0.16 (Q2_K), 0.43 (TQ1_0).
FOREIGN = 0.6
# How many of 32 neighbouring values repeat one before them. Normally distributed weights: 0.01 in bfloat16, next to
# nothing in wider types; the same values once through Q8_0 0.07, Q6_K 0.13, Q5_K 0.41, Q4_K 0.6, Q2_K 0.75.
COARSE = 0.04
# Less is an agent that hardly differs from its base: there is nothing to tell noise from.
NOTICEABLE = 0.02
# Cosine above which two agents are one: 0.9999 is a difference of 1.4 % of the delta's norm.
SAME = 0.9999
# Shared weights of agents trained apart move the same way in 50 to 60 % (the three agents of the sample: 50 %); those
# that undo one quantization of the base in 95 %.
ALIKE = 0.75


@dataclass(frozen=True, slots=True)
class Advice:
    """One sentence or two. ``warning``: a merge is likely to go wrong; ``note``: good to know."""

    kind: Literal["warning", "note"]
    rule: str
    text: str


def advise(found: Inspection) -> list[Advice]:
    """All that the numbers call for, warnings first."""
    advice = [item for rule in _RULES for item in rule(found)]
    if not any(item.kind == "warning" for item in advice):
        advice.append(_all_well(found))
    return sorted(advice, key=lambda item: item.kind != "warning")


def _all_well(found: Inspection) -> Advice:
    if len(found.agents) == 1:
        return Advice("note", "sparse", "The deltas are sparse, as reinforcement learning leaves them.")
    shared = float(ratio(found.total.shared, found.total.by_count[..., 1:].sum(axis=-1)))
    return Advice(
        "note",
        "sparse",
        "The deltas are sparse, as reinforcement learning leaves them: ram and ram+ are made for these agents. "
        f"{shared:.0%} of the changed weights are shared by two agents or more.",
    )


def _unchanged(found: Inspection) -> Iterator[Advice]:
    """No weight differs by more than epsilon, or none differs at all."""
    for name, agent in _agents(found):
        if agent.squares == 0:
            text = f"{name} equals the base in every weight that was compared. Leave it out; is it the right path?"
            yield Advice("warning", "unchanged", text)
        elif agent.changed == 0:
            text = f"{name} differs from the base by {float(agent.largest):.2g} at most, under epsilon "
            yield Advice("warning", "unchanged", text + f"({found.epsilon:g}): to ram and ram+ nothing has changed.")


def _identical(found: Inspection) -> Iterator[Advice]:
    """Equal deltas: their products are equal to the bit. Nearly equal ones count twice all the same."""
    for first, second in found.pairs:
        pair, one, other = found.total.pair(first, second), found.total.agent(first), found.total.agent(second)
        if one.squares == 0 or other.squares == 0:
            continue
        names = f"{found.agents[first]} and {found.agents[second]}"
        if pair.product == one.squares == other.squares:
            text = f"{names} have the same deltas: they are one agent, and would count twice. Leave one out."
            yield Advice("warning", "identical", text)
        elif pair.cosine > SAME and abs(one.norm / other.norm - 1) < 0.02 and not _noise(found):
            text = f"{names} are nearly the same (cosine {float(pair.cosine):.5f}): they would count twice."
            yield Advice("warning", "identical", text)


def _foreign(found: Inspection) -> Iterator[Advice]:
    """Deltas as large as the weights themselves."""
    for name, agent in _agents(found):
        if agent.relative_norm > FOREIGN:
            yield Advice(
                "warning",
                "foreign",
                f"{name} did not come from this base: its delta is {float(agent.relative_norm):.2f} times as large as "
                "the base itself, and training moves a model by a few hundredths. Give the checkpoint it was trained "
                "from.",
            )


def _dense(found: Inspection) -> Iterator[Advice]:
    """Most weights changed, and neither quantization nor another base is the reason."""
    for number, (name, agent) in enumerate(_agents(found)):
        if agent.density > DENSE and agent.relative_norm <= FOREIGN and number not in _noise(found):
            text = (
                f"{name} changed {float(agent.density):.0%} of the weights. ram and ram+ are not for dense deltas: "
                "nearly every weight is shared, and they average like linear. Try ties or dare_linear."
            )
            asked = " Was the base quantized once? Its values repeat."
            yield Advice("warning", "dense", text + (asked if found.matrices.base_coarseness > COARSE else ""))


def _quantized(found: Inspection) -> Iterator[Advice]:
    """The agents, or the base, went through a quantized format, and the deltas are what that left."""
    for number, why in _noise(found).items():
        name, agent = found.agents[number], found.total.agent(number)
        yield Advice(
            "warning",
            "quantized",
            f"Most of the delta of {name} is quantization noise: {why}. It changed {float(agent.density):.0%} of the "
            f"weights by {float(agent.relative_norm):.2g} of their norm; no method can tell its training from that. "
            "Merge the full-precision checkpoints, and quantize the result.",
        )


def _noise(found: Inspection) -> dict[int, str]:
    """The agents whose deltas are quantization noise, and what gives them away.

    Quantized weights, stored as bfloat16 again, repeat themselves: a group of 32 has 16 values to choose from in 4
    bits. So does a base that was quantized once, and an agent trained from just those values still does where it left
    them. Training of a share of the weights takes repetitions away in proportion; requantizing leaves them.
    """
    base = float(found.matrices.base_coarseness)
    reasons = {}
    for number in range(len(found.agents)):
        density = float(found.total.agent(number).density)
        coarse = float(found.matrices.agent(number).coarseness)
        if not density > NOTICEABLE:
            continue
        repeat = f"{coarse:.0%} of its values repeat a neighbour's, in the base {base:.0%}"
        if coarse > COARSE and coarse > 2 * base:
            reasons[number] = f"it was quantized, the base was not ({repeat})"
        elif base > COARSE and base > 2 * coarse and density > DENSE and _moves_alike(found, number):
            reasons[number] = f"the base was quantized, the agents were not, and all undo it alike ({repeat})"
        elif base > COARSE and coarse > base * (1 - density / 2):
            reasons[number] = f"base and agent were quantized ({repeat}; training would have removed some)"
    return reasons


def _moves_alike(found: Inspection, number: int) -> bool:
    """Whether another agent moved most shared weights the same way."""
    agreements = (found.total.pair(*pair).sign_agreement for pair in found.pairs if number in pair)
    return any(agreement > ALIKE for agreement in agreements)


def _frozen(found: Inspection) -> Iterator[Advice]:
    """Tensors that no agent touched: so the density of the others is higher than that of the whole."""
    untouched = found.each.by_count[..., 0] == found.each.elements
    weights = float(found.each.elements[untouched].sum() / max(found.total.elements, 1))
    if untouched.any() and not untouched.all():
        yield Advice(
            "note",
            "frozen",
            f"{int(untouched.sum())} of {len(found.tensors)} tensors, {weights:.0%} of the weights, are as in the "
            "base in every agent.",
        )


def _agents(found: Inspection) -> Iterator[tuple[str, OfAgent]]:
    for number, name in enumerate(found.agents):
        yield name, found.total.agent(number)


_RULES: tuple[Callable[[Inspection], Iterator[Advice]], ...] = (
    _unchanged, _foreign, _quantized, _identical, _dense, _frozen,
)  # fmt: skip
