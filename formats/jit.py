"""The one Numba decorator of the project: every compiled function follows the same policy.

* compiled for an explicit signature, and cached on disk;
* loaded when it is first called or compiled into another, or before that by ``Kernel.load``: each takes some 8 ms;
* the GIL is released, so that workers run side by side;
* no fast-math and no contraction to fused multiply-add: each operation rounds once, as IEEE 754 says;
* numpy's error model: a division by zero is inf or NaN, never an exception (and loops vectorize).

Importing this module imports Numba (about 0.2 s and 100 MB): nothing imports it before it computes.
"""

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numba
from numba import extending, types
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


def sources_digest(formats: Path, kernels: Path) -> str:
    """Changes with every source that has compiled functions, here and in the kernels. Takes 0.4 ms.

    Numba compiles a function anew when its own file changes, but not when the file of a function does that it calls.
    """
    digest = hashlib.sha256()
    quants, primitives = sorted(formats.glob("quants/*.py")), sorted(kernels.glob("*.py"))
    for path in (formats / "jit.py", formats / "codecs.py", *quants, *primitives):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _kernels() -> Path:
    package = sys.modules[__name__.partition(".")[0]]
    return Path(package.__path__[0]) / "kernels"


# NUMBA_CACHE_DIR in the environment has the first word. The code of other versions stays beside ours.
CACHE = Path(getattr(config, "CACHE_DIR", "") or cache_folder()) / sources_digest(Path(__file__).parent, _kernels())
setattr(config, "CACHE_DIR", str(CACHE))  # noqa: B010


class Kernel:
    """A compiled function. Numba takes it for what it is when another function calls it."""

    _loading = threading.RLock()

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self._function, self._signature = function, signature
        self._compiled: Any = None
        update_wrapper(self, function)

    def load(self) -> Any:
        """From the cache; compile it if it is not there."""
        with self._loading:
            if self._compiled is None:
                decorate = numba.njit(self._signature, nogil=True, cache=True, error_model="numpy")
                self._compiled = decorate(self._function)
        return self._compiled

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return (self._compiled or self.load())(*arguments)


@extending.typeof_impl.register(Kernel)
def _type_of(kernel: Kernel, context: object) -> Any:
    return types.Dispatcher(kernel.load())


def kernels_of(module: ModuleType) -> list[Kernel]:
    """Those that a module defines."""
    return [one for one in vars(module).values() if isinstance(one, Kernel) and one.__module__ == module.__name__]


def jit(signature: str) -> Callable[[F], F]:
    """Compile a function for one signature, for example ``"int64(Array(uint16, 1, 'C', True), float32[::1])"``.

    ``Array(..., True)`` is a read-only array: it takes mapped files and writable buffers alike.
    """

    def decorate(function: F) -> F:
        return cast(F, Kernel(function, signature))

    return decorate


def inline(function: F) -> F:
    """A helper that is compiled into its callers."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


def intrinsic(define: Callable[..., Any]) -> Any:
    """``numba.extending.intrinsic``, whose type hints describe the definition and not the call."""
    return extending.intrinsic(define)
