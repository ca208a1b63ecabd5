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
from collections.abc import Callable

# Larger than any system's struct sigaction; its content is only kept, never looked at.
_SIGACTION_BYTES = 512

_lock = threading.Lock()
_watched: dict[int, Callable[[], str]] = {}
_before = ctypes.create_string_buffer(_SIGACTION_BYTES)


def watch(key: int, explain: Callable[[], str]) -> None:
    """From now on a fault ends the process with the text of ``explain``, one line; the first that is not empty wins."""
    with _lock:
        if not _watched:
            _install()
        _watched[key] = explain


def unwatch(key: int) -> None:
    """No more faults of this kind are to be expected. After the last one all is as it was before the first."""
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
        text = next(iter(_watched.values()))()
    finally:
        os.write(2, f"Error: {text}; --io pread reports this as an error\n".encode(errors="replace"))
        os._exit(1)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_fault)
