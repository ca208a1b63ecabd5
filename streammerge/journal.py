"""The journal: what an unfinished output already holds, so that a run can go on after whatever stopped it.

    OUT.partial/.journal      first line: what is being made (recipe, versions, inputs, layout)
                              then a line for each finished piece of work, appended after the data is on the disk

Every line is the CRC-32 of its text, a space, and a JSON object. A line that does not fit its CRC, and all behind it,
never happened: that is how a torn write looks. Work that is finished but not yet on the disk is not in the journal.

The order is everything: data is synced, then lines are appended, then the journal is synced. A thread does this now and
then, so no worker waits for it; it rests twenty times as long as that took.
"""

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import FormatError, OutputError, why
from .formats.atomic import replace_file
from .formats.inputs import MAX_JSON, open_input, parse_json

NAME = ".journal"
Record = dict[str, Any]

_REST = 20  # rests this many times as long as writing took
_LEAST, _MOST = 1.0, 60.0  # seconds between two writings
_MOST_WAITING = 1 << 20  # bytes of lines; after that many it rests no longer, for they take memory


class Journal:
    """A journal being written. ``sync`` makes durable whatever was written before it is called."""

    def __init__(self, folder: Path, earlier: Iterable[Record], sync: Callable[[], None]) -> None:
        """Begin with the records ``earlier``; they replace, in one step, what stood there. Raises OutputError."""
        self._path = folder / NAME
        self._sync = sync
        self._waiting: list[bytes] = []
        self._size = 0  # bytes of what is waiting
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._due = threading.Event()
        self._has_ended = False
        self._failure: OutputError | None = None
        replace_file(self._path, map(record_line, earlier))
        self._thread = threading.Thread(target=self._write_now_and_then, daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """A piece of work is finished. Raises OutputError if the journal could not be written."""
        line = record_line(record)
        with self._lock:
            self._waiting.append(line)
            self._size += len(line)
            if self._size >= _MOST_WAITING:
                self._due.set()
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Make everything durable that was appended so far. Raises OutputError."""
        with self._writing:
            with self._lock:
                lines, self._waiting, self._size = self._waiting, [], 0
            if lines:
                self._sync()
                _append(self._path, b"".join(lines))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left. Raises OutputError, unless something else went wrong already."""
        self._has_ended = True
        self._due.set()
        self._thread.join()
        with nullcontext() if error is None else suppress(OutputError):
            self.flush()

    def _write_now_and_then(self) -> None:
        rest = _LEAST
        while True:
            self._due.wait(rest)
            self._due.clear()
            if self._has_ended:
                return
            began = time.perf_counter()
            try:
                self.flush()
            except OutputError as error:
                self._failure = error
                return
            rest = min(max(_REST * (time.perf_counter() - began), _LEAST), _MOST)


def read_journal(folder: Path) -> Iterator[Record]:
    """Every whole line of the journal in a folder, in order, one at a time; none if there is no journal."""
    return read_records(folder / NAME)


def read_records(path: Path) -> Iterator[Record]:
    """Every whole line of a file of records, in order, one at a time; none if there is no such file."""
    if path.is_symlink():  # nothing of ours is one
        return
    try:
        with open_input(path) as file:
            while line := file.readline(MAX_JSON):
                crc, _, text = line.removesuffix(b"\n").partition(b" ")
                if crc != _crc(text):
                    return
                yield parse_json(path, text)
    except (OSError, FormatError):
        return


def record_line(record: Record) -> bytes:
    """A record as it is written."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return _crc(text) + b" " + text + b"\n"


def _crc(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _append(path: Path, data: bytes) -> None:
    try:
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {why(error)}") from error
