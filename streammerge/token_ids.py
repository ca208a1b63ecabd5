"""Which ids each model has tokens for, and whether one id means one token in all of them."""

from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from .checkpoint import Checkpoint
from .checksum import of_file
from .errors import FormatError, MismatchError
from .formats.inputs import check_size
from .tokens import LARGEST, Comparison, Conflict, Runs, compare_tokenizers

TOKENIZER = "tokenizer.json"


def has_id(runs: Runs, id: int) -> bool:
    """Whether there is a token of this id."""
    place = bisect_right(runs, id, key=itemgetter(0))
    return place > 0 and id < runs[place - 1][1]


def ids_of(models: Sequence[Checkpoint], counts: Sequence[int]) -> tuple[list[Runs], tuple[str, ...]]:
    """The ids that each model has tokens for. Raises MismatchError where they cannot be told, or do not agree."""
    files = {k: model.path / TOKENIZER for k, model in enumerate(models) if (model.path / TOKENIZER).is_file()}
    resized = len(set(counts)) > 1
    if resized:
        _check_told(models, counts, files)
    for file in files.values():
        check_size(file, LARGEST)
    digests = {k: of_file(file) for k, file in files.items()}
    first = {digest: files[k] for k, digest in reversed(digests.items())}  # one file for each content
    different = [files[k] for k, digest in digests.items() if first[digest] == files[k]]
    everything: Runs = ((0, counts[0]),)
    if len(different) < 2 and not resized:
        return [everything] * len(models), ()
    try:
        found = compare_tokenizers(different)
    except FormatError as error:
        if resized:
            raise
        return [everything] * len(models), (f"{error}; the ids of its tokens were not compared",)
    if found.conflict is not None:
        raise _explained(found.conflict, different)
    by_file = dict(zip(different, found.ids, strict=True))
    known = {k: _clipped(models[k], by_file[first[digest]], counts[k]) for k, digest in digests.items()}
    ids = [known.get(k, known.get(0, everything)) for k in range(len(models))]
    return ids, tuple(_parts_that_differ(found, different))


def _check_told(models: Sequence[Checkpoint], counts: Sequence[int], files: Container[int]) -> None:
    """Where numbers of rows differ, each model must say which tokens its rows are, or have as many as the base."""
    for k, model in enumerate(models):
        if k not in files and (k == 0 or counts[k] != counts[0]):
            other = next(number for number, rows in enumerate(counts) if rows != counts[k])
            raise MismatchError(
                f"{model.path}: has {counts[k]} rows in its vocabulary, {models[other].path} has {counts[other]}, and "
                f"no {TOKENIZER} tells which tokens they are; put it there"
            )


def _clipped(model: Checkpoint, runs: Runs, rows: int) -> Runs:
    """Without the ids that have no row."""
    clipped = tuple((start, min(stop, rows)) for start, stop in runs if start < rows)
    if not clipped:
        raise MismatchError(
            f"{model.path / TOKENIZER}: none of its tokens has one of the {rows} rows of the vocabulary"
        )
    return clipped


def _explained(conflict: Conflict, files: Sequence[Path]) -> MismatchError:
    one, other = (files[number] for number in conflict.files)
    ours, theirs = conflict.texts
    where = "" if conflict.elsewhere is None else f" (which is token {conflict.elsewhere} there)"
    return MismatchError(
        f"{other}: token {conflict.id} is {theirs!r:.80}, in {one} it is {ours!r:.80}{where}; rows are merged by id, "
        f"so one id must be one token: give both models the same {TOKENIZER} if it was only renamed"
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
        "tokenizer must have every token"
    )


def _covers(runs: Runs, other: Runs) -> bool:
    """Whether every id of ``other`` is among ``runs``, whose stretches never touch."""
    places = (bisect_right(runs, start, key=itemgetter(0)) for start, _ in other)
    return all(place > 0 and stop <= runs[place - 1][1] for place, (_, stop) in zip(places, other, strict=True))
