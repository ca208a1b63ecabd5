"""Rows of the vocabulary: embedding, head and output bias, which agents may have extended, trimmed or padded.

    rows 0 to the base's last token     merged by the method; where an agent has no such row the base's stands in
    rows after that                     a token: from the one agent that has it, or the mean of those that do
                                        padding: from the base, else from the first agent that has the row

That is sound only where one id means one token, so the tokenizers are compared (``tokens.py``). A model without
tokenizer.json is taken to have the base's, if it has as many rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from .aligned import AlignedSource
from .checkpoint import Checkpoint
from .errors import MismatchError
from .formats.contract import TensorInfo
from .formats.dtypes import DTYPES
from .jobs import Action, TensorJob
from .selection import Selection
from .token_ids import has_id, ids_of, owner_of
from .tokens import Runs

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "embeddings.weight",
    "shared.weight",
)
_OUTPUTS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows ``start`` to ``stop`` that are not merged but come from these models (0 is the base)."""

    start: int
    stop: int
    donors: tuple[int, ...]
    tokens: bool

    @property
    def reason(self) -> str:
        """Where the rows come from, as the plan and the model card say it."""
        names = " and ".join("the base" if donor == 0 else f"agent {donor}" for donor in self.donors)
        what = "added tokens" if self.tokens else "padding"
        return f"rows {self.start} to {self.stop - 1}, {what}: " + ("the mean of " if self.donors[1:] else "") + names


@dataclass(frozen=True)
class Vocabulary:
    """What becomes of the vocabulary. ``tensors`` are merged by rows: the first ``common`` ones by the method, the
    ``tail`` from its donors, ``rows`` in all. ``agents`` are the models with the rows that they lack. ``owner``
    (0 is the base) has the tokenizer of the output; ``resized``: it has another number of rows than the base."""

    tensors: frozenset[str]
    agents: tuple[Checkpoint, ...]
    rows: int = 0
    common: int = 0
    tail: tuple[Stretch, ...] = ()
    owner: int = 0
    resized: bool = False
    notices: tuple[str, ...] = ()

    def parts(self, job: TensorJob, dtypes: Sequence[str]) -> Iterator[TensorJob]:
        """The jobs that one vocabulary tensor takes; ``job`` would merge all of it, ``dtypes`` are the models'."""
        shape = (self.rows, *job.shape[1:])
        row = prod(shape[1:])
        yield replace(job, shape=shape, span=(0, self.common * row) if self.tail else None)
        for stretch in self.tail:
            yield replace(
                job,
                shape=shape,
                span=(stretch.start * row, stretch.stop * row),
                donors=stretch.donors,
                source_dtype=dtypes[stretch.donors[0]],
                action=_action(job.dtype, [dtypes[donor] for donor in stretch.donors]),
                reason=stretch.reason,
                counted=False,
            )


def _action(wanted: str, dtypes: Sequence[str]) -> Action:
    if len(dtypes) > 1:
        return "average"
    return "copy" if dtypes[0] == wanted else "cast"


def input_embedding(model: Checkpoint) -> TensorInfo | None:
    """The table of token embeddings, if it is found by its name."""
    named = (info for name, info in model.tensors.items() if _is_called(name, _EMBEDDINGS) and len(info.shape) == 2)
    return next(named, None)


def _is_called(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


# --- what becomes of it ----------------------------------------------------------------------------------------------


def align_vocabulary(base: Checkpoint, agents: Sequence[Checkpoint], selection: Selection) -> Vocabulary:
    """Decide about every row, from headers and tokenizers. Raises MismatchError, FormatError."""
    names, excluded = _vocabulary_tensors(base, selection)
    if not names or not all(name in model.tensors for model in agents for name in names):
        return Vocabulary(frozenset(), tuple(agents))  # what is missing is explained where tensors are compared
    try:
        return _aligned(base, agents, names, excluded)
    except MismatchError as error:
        leave = f"to leave the vocabulary as it is in the base: --exclude '^({'|'.join(names)})$'"
        raise MismatchError(f"{error}; {leave}") from None


def _aligned(
    base: Checkpoint, agents: Sequence[Checkpoint], names: Sequence[str], excluded: Sequence[str]
) -> Vocabulary:
    models = (base, *agents)
    counts = [_rows(model, names) for model in models]
    ids, notices = ids_of(models, counts)
    common = ids[0][-1][1]
    owner = owner_of(models, ids)
    told = (*notices, *_told_owner(models, owner))
    if len(set(counts)) == 1 and all(runs[-1][1] <= common for runs in ids):
        return Vocabulary(frozenset(), tuple(agents), owner=owner, notices=told)
    tail = tuple(_tail(counts, ids, common))
    resized = max(counts) != counts[0]
    if excluded and resized:
        raise MismatchError(
            f"{base.path}: tensor {excluded[0]!r} is excluded and keeps its {counts[0]} rows, but {names[0]!r} would "
            f"have {max(counts)}; exclude all tensors of the vocabulary, or none"
        )
    filled = tuple(_filled(base, agent, names, count, common) for agent, count in zip(agents, counts[1:], strict=True))
    told = (*told, _told(counts, tail))
    return Vocabulary(frozenset(names), filled, max(counts), common, tail, owner, resized, told)


def _vocabulary_tensors(base: Checkpoint, selection: Selection) -> tuple[list[str], list[str]]:
    """The base's tensors with a row for each token: those that are merged, and those that are not."""
    embedding = input_embedding(base)
    if embedding is None:
        return [], []
    named = [
        name
        for name, info in base.tensors.items()
        if _is_called(name, _EMBEDDINGS + _OUTPUTS) and info.shape[:1] == embedding.shape[:1]
    ]
    merged = [name for name in named if selection.reason(name) is None and DTYPES[base.tensors[name].dtype].floating]
    return merged, [name for name in named if name not in merged]


def _rows(model: Checkpoint, names: Sequence[str]) -> int:
    found = {name: (model.tensors[name].shape or (1,))[0] for name in names}
    first = names[0]
    for name, rows in found.items():
        if rows != found[first]:
            raise MismatchError(
                f"{model.path}: tensor {name!r} has {rows} rows, {first!r} has {found[first]}; both should have one "
                "for each token"
            )
    return found[first]


def _tail(counts: Sequence[int], ids: Sequence[Runs], common: int) -> Iterator[Stretch]:
    """The rows after the common ones, those of the same donors together."""
    edges = {edge for runs in ids for run in runs for edge in run} | {*counts, common}
    cuts = sorted(edge for edge in edges if common <= edge <= max(counts))
    last: Stretch | None = None
    for start, stop in pairwise(cuts):
        donors = tuple(k for k, rows in enumerate(counts) if start < rows and has_id(ids[k], start))
        padding = next(k for k, rows in enumerate(counts) if start < rows)
        found = Stretch(start, stop, donors or (padding,), bool(donors))
        if last is not None and (last.donors, last.tokens) == (found.donors, found.tokens):
            last = replace(last, stop=stop)
            continue
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last


def _filled(base: Checkpoint, agent: Checkpoint, names: Sequence[str], rows: int, common: int) -> Checkpoint:
    """The agent with the base's rows where it has none."""
    if rows >= common:
        return agent
    for name in names:
        if agent.tensors[name].dtype != base.tensors[name].dtype:
            raise MismatchError(
                f"{agent.path}: tensor {name!r} lacks rows of the base, which cannot stand in: it is "
                f"{agent.tensors[name].dtype}, the base's {base.tensors[name].dtype}"
            )
    longer = {name: replace(info, shape=(common, *info.shape[1:])) for name, info in _named(agent, names).items()}
    stored = {name: info.nbytes for name, info in _named(agent, names).items()}
    source = AlignedSource(agent.source, {**agent.tensors, **longer}, stored, _named(base, names), base.source)
    return replace(agent, source=source)


def _named(model: Checkpoint, names: Sequence[str]) -> dict[str, TensorInfo]:
    return {name: model.tensors[name] for name in names}


def _told(counts: Sequence[int], tail: Sequence[Stretch]) -> str:
    many = f"{counts[0]} rows in the base" + "".join(f", {rows} in agent {k}" for k, rows in enumerate(counts[1:], 1))
    taken = "; ".join(stretch.reason for stretch in tail[:4]) + ("; ..." if len(tail) > 4 else "")
    return f"vocabulary: {many}; merged by id" + (f"; {taken}" if taken else "")


def _told_owner(models: Sequence[Checkpoint], owner: int) -> Iterator[str]:
    if owner:
        yield f"tokenizer files and chat template are those of {models[owner].path}, which has every token"
