"""Which ids each model has tokens for, and whether one id means one token in all of them."""

from collections.abc import Iterator, Sequence
from hashlib import file_digest
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import FormatError, MismatchError
from .tokens import Comparison, Runs, compare_tokenizers

TOKENIZER = "tokenizer.json"
LEAVE = "to leave the vocabulary as it is in the base: --exclude 'embed_tokens|lm_head'"


def has_id(runs: Runs, id: int) -> bool:
    """Whether there is a token of this id."""
    return any(start <= id < stop for start, stop in runs)


def ids_of(models: Sequence[Checkpoint], counts: Sequence[int]) -> tuple[list[Runs], tuple[str, ...]]:
    """The ids that each model has tokens for. Raises MismatchError where they cannot be told, or do not agree."""
    files = {k: model.path / TOKENIZER for k, model in enumerate(models) if (model.path / TOKENIZER).is_file()}
    resized = len(set(counts)) > 1
    for k, model in enumerate(models) if resized else ():
        if k not in files and (k == 0 or counts[k] != counts[0]):
            raise MismatchError(
                f"{model.path}: has {counts[k]} rows in its vocabulary, {_another(models, counts, k)}, and no "
                f"{TOKENIZER} to tell which tokens they are; put it there, or {LEAVE}"
            )
    first: dict[bytes, Path] = {}  # by content
    for file in files.values():
        first.setdefault(_digest(file), file)
    everything: Runs = ((0, counts[0]),)
    if len(first) < 2 and not resized:
        return [everything] * len(models), ()
    try:
        found = compare_tokenizers(list(first.values()))
    except FormatError as error:
        if resized:
            raise
        return [everything] * len(models), (f"{error}; the ids of its tokens were not compared",)
    if found.conflict is not None:
        raise _conflict(found, list(first.values()))
    numbers = {file: list(first).index(_digest(file)) for file in files.values()}
    known = {k: _clipped(models[k], found.ids[numbers[file]], counts[k]) for k, file in files.items()}
    ids = [known.get(k, known.get(0, everything)) for k in range(len(models))]
    return ids, tuple(_parts_that_differ(found, list(first.values())))


def _clipped(model: Checkpoint, runs: Runs, rows: int) -> Runs:
    """Without the ids that have no row."""
    clipped = tuple((start, min(stop, rows)) for start, stop in runs if start < rows)
    if not clipped:
        raise MismatchError(
            f"{model.path / TOKENIZER}: none of its tokens has one of the {rows} rows of the vocabulary"
        )
    return clipped


def _another(models: Sequence[Checkpoint], counts: Sequence[int], k: int) -> str:
    other = next(number for number, rows in enumerate(counts) if rows != counts[k])
    return f"{models[other].path} has {counts[other]}"


def _digest(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").digest()
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {error.strerror}") from error


def _conflict(found: Comparison, files: Sequence[Path]) -> MismatchError:
    conflict = found.conflict
    assert conflict is not None
    one, other = (files[number] for number in conflict.files)
    ours, theirs = conflict.texts
    where = "" if conflict.elsewhere is None else f" (which is token {conflict.elsewhere} there)"
    return MismatchError(
        f"{other}: token {conflict.id} is {theirs!r:.80}, in {one} it is {ours!r:.80}{where}; rows are merged by id, so "
        f"one id must be one token: give both models the same {TOKENIZER} if it was only renamed, or {LEAVE}"
    )


def _parts_that_differ(found: Comparison, files: Sequence[Path]) -> Iterator[str]:
    for file, parts in zip(files, found.differing, strict=True):
        if parts:
            yield f"{file}: ids agree with {files[0]}, but these differ: {', '.join(parts)}"


def owner_of(models: Sequence[Checkpoint], ids: Sequence[Runs]) -> int:
    """The first model that has every token of all."""
    for k in range(len(models)):
        if all(_covers(ids[k], other) for other in ids):
            return k
    best = max(range(len(models)), key=lambda k: sum(stop - start for start, stop in ids[k]))
    lacking = next(other for other in range(len(models)) if not _covers(ids[best], ids[other]))
    raise MismatchError(
        f"{models[best].path / TOKENIZER}: has the most tokens, but not all of {models[lacking].path / TOKENIZER}; one "
        f"tokenizer must have every token; {LEAVE}"
    )


def _covers(runs: Runs, other: Runs) -> bool:
    """Whether every id of ``other`` is among ``runs``, whose stretches never touch."""
    return all(any(begin <= start and stop <= end for begin, end in runs) for start, stop in other)
