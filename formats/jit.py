"""The one Numba decorator of the project: every compiled function follows the same policy.

* compiled for an explicit signature when its module is imported, and cached on disk;
* the GIL is released, so that workers run side by side;
* no fast-math and no contraction to fused multiply-add: each operation rounds once, as IEEE 754 says;
* numpy's error model: a division by zero is inf or NaN, never an exception (and loops vectorize).

Importing this module imports Numba (about 0.2 s and 100 MB): nothing imports it before it computes.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])


def _leave_out_blas() -> None:
    """Numba looks for SciPy's BLAS when it loads its first function: 0.1 s and 15 MB for what no kernel here calls.

    Not found, it goes on without; whoever wants SciPy in this process gets it as ever.
    """
    if "scipy.linalg" in sys.modules:
        return
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # this is how an import is refused
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        del sys.modules["scipy.linalg"]


_leave_out_blas()


def cache_folder() -> Path:
    """Where compiled code is kept: STREAMMERGE_CACHE_DIR, else the user's cache folder, else a temporary one."""
    chosen = os.environ.get("STREAMMERGE_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else home / "streammerge"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="streammerge-"))


def sources_digest(package: Path) -> str:
    """Changes with every source of ``package``, which is this one, that has compiled functions. Takes 0.3 ms.

    Numba compiles a function anew when its own file changes, but not when the file of a helper does that was inlined.
    """
    digest = hashlib.sha256()
    for path in (package / "jit.py", package / "codecs.py", *sorted(package.glob("quants/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# NUMBA_CACHE_DIR in the environment has the first word. The code of other versions stays beside ours.
CACHE = Path(getattr(config, "CACHE_DIR", "") or cache_folder()) / sources_digest(Path(__file__).parent)
setattr(config, "CACHE_DIR", str(CACHE))  # noqa: B010


def jit(signature: str) -> Callable[[F], F]:
    """Compile a function for one signature, for example ``"int64(Array(uint16, 1, 'C', True), float32[::1])"``.

    ``Array(..., True)`` is a read-only array: it takes mapped files and writable buffers alike.
    """

    def decorate(function: F) -> F:
        compiled = numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function)
        return cast(F, compiled)

    return decorate


def inline(function: F) -> F:
    """A helper that is compiled into its callers."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))
