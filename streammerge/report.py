"""What a merge leaves behind beside the weights: the summary, and the model card."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .budget import format_size
from .escape import code, markdown, printable
from .jobs import TensorJob
from .ledger import Outcome
from .methods.ram_plus import RamPlus, overlap_ratio
from .planning import Plan, weights_of
from .saved_recipe import recipe_yaml
from .varying import varies

_ONE_LINE = sys.maxsize  # folded, a name could begin a line with what ends the YAML around it

_WORDS = (
    ("merge", "merged"),
    ("copy", "copied"),
    ("cast", "copied in another type"),
    ("average", "averaged: tokens that several agents added"),
)


@dataclass(frozen=True, slots=True)
class AgentShare:
    """What one agent changed: counts of weights, and what RAM+ made of them (1 where nothing is rescaled)."""

    agent: str
    changed: int
    unique: int
    density: float
    overlap_ratio: float | None
    scale: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a run. Times in seconds from the plan to the end, sizes in bytes."""

    plan: Plan
    outcome: Outcome
    seconds: float
    peak: int
    agents: tuple[AgentShare, ...]
    device_peak: int | None = None

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes read and written, in 10^9, for each second of the whole run."""
        return (self.outcome.bytes_read + self.outcome.bytes_written) / self.seconds / 1e9

    @property
    def bound_by(self) -> str:
        """What the workers spent most of their time on."""
        return "reading and writing" if self.outcome.waiting > self.outcome.computing else "computing"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        memory = {**asdict(self.plan.memory), "peak": self.peak}
        return {
            "output": str(self.plan.output),
            "files": [file.name for file in self.plan.files],
            "method": self.plan.method_dict(),
            "weights": dict(weights_of(self.plan.jobs)),
            "tensors": _by_tensor(self.plan.jobs),
            "agents": [asdict(share) for share in self.agents],
            "non_finite": {"inputs": self.outcome.non_finite_inputs, "outputs": self.outcome.non_finite_outputs},
            "seconds": self.seconds,
            "bytes_read": self.outcome.bytes_read,
            "bytes_written": self.outcome.bytes_written,
            "gigabytes_per_second": self.gigabytes_per_second,
            "bound_by": self.bound_by,
            "memory": memory,
            "device": {**asdict(self.plan.placement), "peak": self.device_peak},
        }


def _by_tensor(jobs: Sequence[TensorJob]) -> dict[str, dict[str, str]]:
    """What was done to each tensor of the output; of one in parts, to the first, and why to all of them."""
    found: dict[str, dict[str, str]] = {}
    for job in jobs:
        name, dtype = (job.target.name, job.target.dtype) if job.target else (job.name, job.dtype)
        if name not in found:
            found[name] = {"action": job.action, "reason": job.reason, "dtype": dtype}
        elif job.span is not None:
            found[name]["reason"] += f"; {job.reason}"
    return found


def agent_shares(plan: Plan, outcome: Outcome) -> tuple[AgentShare, ...]:
    """The overlap statistics of the run's own passes; empty for methods that do not count."""
    if not plan.method.tallies:
        return ()
    total = sum(job.elements for job in plan.jobs if job.action == "merge" and job.counted)
    scales: Sequence[float | None] = [None] * len(plan.agents)
    if isinstance(plan.method, RamPlus) and not any(varies(plan.parameters[name]) for name in ("r", "alpha")):
        scales = [float(scale) for scale in plan.method.scales(outcome.state)]
    shares = []
    for path, (changed, unique), scale in zip(plan.recipe.agents, outcome.tally.tolist(), scales, strict=True):
        ratio = overlap_ratio(changed, unique)
        finite = ratio if ratio != float("inf") else None
        shares.append(AgentShare(model_name(path), changed, unique, changed / max(total, 1), finite, scale))
    return tuple(shares)


def model_name(path: Path) -> str:
    """How a model is called in a card: its Hub name if it lies in the Hub's cache, else its folder's or file's name."""
    absolute = path.absolute()
    for part in absolute.parts:
        if part.startswith("models--"):
            return printable(part.removeprefix("models--").replace("--", "/"))
    return printable(absolute.stem if path.is_file() else absolute.name)


def summary(report: Report) -> list[str]:
    """The lines that end a merge on the terminal."""
    plan, outcome, memory = report.plan, report.outcome, report.plan.memory
    weights = weights_of(plan.jobs)
    lines = [
        f"{plan.output}: {len(plan.tensor_names)} tensors, {sum(weights.values()):,} weights, "
        f"{format_size(plan.bytes_to_write)} ({plan.method.name}"
        + (")" if plan.gguf is None else f", {plan.gguf.file_type.name})")
    ]
    lines += [f"  {weights[action]:,} {word}" for action, word in _WORDS if weights[action]]
    for share in report.agents:
        unique = share.unique / max(share.changed, 1)
        scale = "" if share.scale is None else f", unique part scaled by {share.scale:.4f}"
        lines.append(f"  {share.agent}: changed {share.density:.2%}, of these {unique:.1%} alone{scale}")
    if outcome.non_finite_inputs or outcome.non_finite_outputs:
        lines.append(f"  not finite: {outcome.non_finite_inputs:,} inputs, {outcome.non_finite_outputs:,} outputs")
    lines.append(
        f"  {report.seconds:.1f} s, {report.gigabytes_per_second:.2f} GB/s, bound by {report.bound_by}; "
        f"{memory.workers} threads"
    )
    lines.append(
        f"  memory: peak {format_size(report.peak)}, projected {format_size(memory.projected)}, "
        f"allowed {format_size(memory.allowed)} (reserved {format_size(memory.reserved)})"
    )
    return [*lines, *_device_lines(report)]


def _device_lines(report: Report) -> list[str]:
    """Where it was computed, if there was a choice, and what that took of the device's memory."""
    placement, peak = report.plan.placement, report.device_peak
    lines = [f"  computed on {placement}"] if placement.had_choice else []
    if placement.vram is not None and peak is not None:
        lines.append(
            f"  its memory: peak {format_size(peak)}, projected {format_size(placement.vram.projected)}, "
            f"allowed {format_size(placement.vram.allowed)}"
        )
    return lines


def model_card(plan: Plan, shares: Sequence[AgentShare]) -> str:
    """README.md of the output: the same for the same recipe, whatever machine or budget made it."""
    import yaml

    names = [model_name(plan.recipe.base), *(model_name(path) for path in plan.recipe.agents)]
    front = {"base_model": names, "library_name": "transformers", "tags": ["merge", "streammerge"]}
    title = "Merged model" if plan.recipe.output is None else markdown(plan.recipe.output.name)
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False, width=_ONE_LINE).strip(), "---", "", f"# {title}", "",
        f"Merged with streammerge {__version__}: {plan.method.title} (`{plan.method.name}`, {plan.method.paper}).", "",
        "```yaml", recipe_yaml(plan.recipe, model_name).strip(), "```", "",
    ]  # fmt: skip
    if shares:
        lines += [
            "| agent | changed weights | of these changed by it alone | scale of the unique part |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {markdown(share.agent)} | {share.density:.4%} | {share.unique / max(share.changed, 1):.4%} | "
            f"{'1' if share.scale is None else f'{share.scale:.6f}'} |"
            for share in shares
        ]
        lines.append("")
    kept = [job for job in plan.jobs if job.action != "merge"]
    if kept:
        lines += ["Not merged:", "", *(f"- {code(job.name)}: {markdown(job.reason)}" for job in kept), ""]
    return "\n".join(lines)
