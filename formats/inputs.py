"""Files that somebody else made: opened only if they are regular files, read only up to a limit.

Whoever made a checkpoint chooses every byte of it. So nothing is opened before it is known to be a file (a FIFO blocks
for ever), nothing is read before its size is known, and JSON is counted before it is parsed: parsed, a value takes up
to some 130 bytes, whatever it takes in the file. What is read here takes less than 200 MB, a tokenizer less than 600.
"""

import json
import os
import stat
from collections.abc import Iterable
from errno import ENOENT
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .errors import FormatError, why

MAX_JSON = 16 << 20  # bytes; one character beyond the basic plane makes Python take four for each
MAX_VALUES = 1_400_000  # in one JSON text: 116,000 tensors of two axes; parsed, they take up to 0.2 GB
MAX_DEPTH = 100  # of what stands inside each other in JSON; Python's own recursion ends at 1000
MAX_NAME = 1000  # characters of a tensor's name

Kind = Literal["file", "folder", "nothing", "neither a file nor a folder"]


def kind_of(path: Path) -> Kind:
    """What stands under a name, links followed. Raises FormatError if the system cannot say."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "neither a file nor a folder"


def open_input(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises FormatError, also where opening anything else would wait for ever."""
    kind = kind_of(path)
    if kind != "file":
        what = os.strerror(ENOENT) if kind == "nothing" else "is not a regular file"
        raise FormatError(f"{path}: cannot be read: {what}")
    try:
        return open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def check_size(path: Path, most: int) -> None:
    """Raise FormatError if it is no regular file or longer than ``most`` bytes: reading a hole takes for ever, too."""
    with open_input(path) as file:
        _check_size(path, file, most)


def _check_size(path: Path, file: BinaryIO, most: int) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise FormatError(f"{path}: is {size} bytes long, more than the {most} that such a file may have")


def read_input(path: Path, most: int = MAX_JSON) -> bytes:
    """A whole file of at most ``most`` bytes. Raises FormatError."""
    with open_input(path) as file:
        _check_size(path, file, most)
        try:
            return file.read(most)
        except OSError as error:
            raise _unreadable(path, error) from error


def read_text(path: Path, most: int = MAX_JSON) -> str:
    """A whole text file. Raises FormatError, also if it is not UTF-8."""
    raw = read_input(path, most)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8: {error}") from error


def read_json(path: Path, most: int = MAX_JSON, most_values: int = MAX_VALUES) -> dict[str, Any]:
    """A JSON object from a file, as ``parse_json``. Raises FormatError."""
    return parse_json(path, read_input(path, most), most_values)


def _unreadable(path: Path, error: Exception) -> FormatError:
    reason = why(error) if isinstance(error, OSError) else error
    return FormatError(f"{path!s:.300}: cannot be read: {reason}")


# --- JSON: a ladder of checks ----------------------------------------------------------------------------------------


def parse_json(path: Path, raw: bytes, most_values: int = MAX_VALUES) -> dict[str, Any]:
    """A JSON object of a bearable size and depth in which no key stands twice. Raises FormatError."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise FormatError(f"{path}: {repeated(name for name, _ in pairs)!r:.200} stands twice in one JSON object")
        return found

    _check_values(path, raw, most_values)
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not valid JSON: {error!s:.200}") from error
    if not isinstance(parsed, dict):
        raise FormatError(f"{path}: must hold a JSON object, found {type(parsed).__name__}")
    _check_depth(path, parsed)
    return parsed


def _check_values(path: Path, raw: bytes, most: int) -> None:
    """Each value, key or container has one of these before it. Those inside texts are counted, too: it is a bound."""
    values = sum(raw.count(sign) for sign in b",:[{")
    if values > most:
        raise FormatError(f"{path}: holds about {values} JSON values, more than the {most} that are read")


def _check_depth(path: Path, parsed: dict[str, Any]) -> None:
    """Level by level, because what walks down by calling itself has an end that is no error of ours."""
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        inner = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise FormatError(f"{path}: its JSON is nested deeper than {MAX_DEPTH} levels")


# --- names -----------------------------------------------------------------------------------------------------------


def repeated(names: Iterable[str]) -> str | None:
    """The first name that stands there a second time."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def is_name(text: str, most: int = MAX_NAME) -> bool:
    """Whether a name from a file can be printed and looked up: no control characters, no NUL, no half of a pair."""
    return 0 < len(text) <= most and text.isprintable()
