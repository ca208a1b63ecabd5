"""A fault in a mapping says which file it was before it ends the process.

Where a mapped file was cut, or its disk fails, the system sends SIGBUS to the thread that touches the page. Nothing
can be raised from there: compiled code cannot be left in the middle. So the handler writes one line and exits with
code 1; what was written so far stays aside, as after a kill. It is installed while something is mapped.

Python's own signal handlers run later, between bytecodes, and so never for a fault. This one is a C function made by
ctypes: it takes the GIL, which the faulting thread either holds or has released, and so can wait for.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

# Larger than any system's struct sigaction; its content is only kept, never looked at.
_SIGACTION_BYTES = 512

Mapped = Callable[[], Iterable[tuple[Path, int]]]
"""What is mapped just now: each file, and the size that it should have."""

_lock = threading.Lock()
_watched: dict[int, Mapped] = {}
_before = ctypes.create_string_buffer(_SIGACTION_BYTES)


def watch(key: int, mapped: Mapped) -> None:
    """From now on a fault ends the process with a line that names one of these files."""
    with _lock:
        if not _watched:
            _install()
        _watched[key] = mapped


def unwatch(key: int) -> None:
    """Nothing more is mapped there. After the last one all is as it was before the first."""
    with _lock:
        if _watched.pop(key, None) is not None and not _watched and sys.platform != "win32":
            ctypes.CDLL(None).sigaction(signal.SIGBUS, _before, None)


def _install() -> None:
    if sys.platform == "win32":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.sigaction(signal.SIGBUS, None, _before)
    libc.signal(signal.SIGBUS, ctypes.cast(_handler, ctypes.c_void_p))


def _fault(number: int) -> None:
    """The handler: on the thread that faulted, between two instructions. Returning would fault again, for ever."""
    text = "a mapped file cannot be read"
    try:
        text = _explain({file: size for mapped in list(_watched.values()) for file, size in mapped()})
    finally:
        os.write(2, f"Error: {text}; --io pread reports this as an error\n".encode(errors="replace"))
        os._exit(1)


def _explain(mapped: dict[Path, int]) -> str:
    """Which file became shorter; if none did, which it may have been."""
    for file, wanted in mapped.items():
        with suppress(OSError):
            size = file.stat().st_size
            if size < wanted:
                return f"{file}: became shorter while it was mapped: {size} bytes found, {wanted} wanted"
    return f"{' or '.join(map(str, mapped))}: cannot be read where it is mapped; check the disk or the mount"


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_fault)
