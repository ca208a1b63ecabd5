"""Whether tokenizers give the same ids to the same tokens: tokenizer.json read plainly, in a process of its own.

A large vocabulary takes some 200 MB as Python objects, more than most merges; that process ends with them.
``python -m streammerge.tokens FILE...`` is it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from streammerge.errors import FormatError, StreammergeError
from streammerge.formats.inputs import read_json

Runs = tuple[tuple[int, int], ...]  # ids as (first, one past the last), rising

_SECONDS = 60  # for a file that takes one or two
LARGEST, _MOST_VALUES = 64 << 20, 4_000_000  # bytes and JSON values of a tokenizer.json
# Beside ids, what decides how a text is cut into tokens.
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


@dataclass(frozen=True, slots=True)
class Conflict:
    """An id that two tokenizers, by their numbers, give to different tokens. ``elsewhere``: the id that the first one
    gives to the token of the second, if it has it at all."""

    id: int
    files: tuple[int, int]
    texts: tuple[str, str]
    elsewhere: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What some tokenizers have in common: the ids of each, the first conflict, and for each the parts that differ from
    the first one's."""

    ids: tuple[Runs, ...]
    conflict: Conflict | None
    differing: tuple[tuple[str, ...], ...]


def compare_tokenizers(files: Sequence[Path]) -> Comparison:
    """Compare tokenizer.json files. Raises FormatError if one cannot be read."""
    command = [sys.executable, "-P", "-m", "streammerge.tokens", *map(str, files)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=_SECONDS * len(files)
        )
    except subprocess.TimeoutExpired as error:
        names = ", ".join(map(str, files))
        raise FormatError(f"{names}: comparing their tokens takes longer than {_SECONDS} s each") from error
    if done.returncode != 0:
        raise FormatError((done.stderr.strip() or f"{files[0]}: cannot be read").splitlines()[-1])
    found = json.loads(done.stdout)
    conflict = found["conflict"]
    return Comparison(
        tuple(tuple((start, stop) for start, stop in runs) for runs in found["ids"]),
        None if conflict is None else Conflict(conflict[0], (*conflict[1],), (*conflict[2],), conflict[3]),
        tuple(tuple(parts) for parts in found["differing"]),
    )


# --- in the process of its own ---------------------------------------------------------------------------------------


def _compare(files: Sequence[Path]) -> dict[str, Any]:
    known: dict[int, tuple[int, str]] = {}  # id to the number of the first file that has it, and its token
    ids, parts, conflict = [], [], None
    for number, file in enumerate(files):
        tokenizer = read_json(file, LARGEST, _MOST_VALUES)
        tokens = _tokens(file, tokenizer)
        ids.append(list(_runs(sorted(tokens))))
        parts.append(_digests(file, tokenizer))
        conflict = conflict or _first_conflict(known, number, tokens)
        for token in tokens.items():
            known.setdefault(token[0], (number, token[1]))
    differing = [[name for name in own if own[name] != parts[0][name]] for own in parts]
    return {"ids": ids, "conflict": conflict, "differing": differing}


def _first_conflict(
    known: Mapping[int, tuple[int, str]], number: int, tokens: Mapping[int, str]
) -> tuple[int, tuple[int, int], tuple[str, str], int | None] | None:
    for id in sorted(tokens.keys() & known.keys()):
        file, text = known[id]
        if text != tokens[id]:
            elsewhere = (other for other, (first, found) in known.items() if first == file and found == tokens[id])
            return id, (file, number), (text, tokens[id]), next(elsewhere, None)
    return None


def _tokens(file: Path, tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Id to text. BPE, WordPiece and WordLevel have text to id, Unigram a list of text and score; added tokens last."""
    try:
        vocab = tokenizer["model"]["vocab"]
        if isinstance(vocab, list):
            found = {id: text for id, (text, _) in enumerate(vocab)}
        else:
            found = {id: text for text, id in vocab.items()}
        found |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or ()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise FormatError(f"{file}: holds no vocabulary that is known: model.vocab, added_tokens") from None
    if not found or not all(type(id) is int and id >= 0 and isinstance(text, str) for id, text in found.items()):
        raise FormatError(f"{file}: holds no vocabulary, or ids that are no numbers from 0 on")
    return found


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = ids[0]
    for id, following in zip(ids, (*ids[1:], -1), strict=True):
        if following != id + 1:
            yield start, id + 1
            start = following


def _digests(file: Path, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """A short stand-in for each part; merges are written as 'a b' or as ['a', 'b'], which is the same."""
    merges = sha256()
    try:
        for pair in tokenizer["model"].get("merges") or ():
            text = pair if isinstance(pair, str) else " ".join(map(str, pair))
            merges.update(text.encode("utf-8", "surrogatepass") + b"\n")
    except TypeError:
        raise FormatError(f"{file}: model.merges is no list of pairs") from None
    parts = {name: sha256(json.dumps(tokenizer.get(name), sort_keys=True).encode()).hexdigest() for name in _PARTS}
    return {"merges": merges.hexdigest(), **parts}


def main(files: Sequence[Path]) -> int:
    """Print the comparison as JSON. Returns the exit code."""
    try:
        print(json.dumps(_compare(files)))
    except (OSError, StreammergeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
