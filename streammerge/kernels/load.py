"""Loads the compiled kernels, and compiles them first, in a process of its own, where that has not been done.

LLVM needs more memory than most merges: a child that ends gives it all back, so the peak of the merging process
stays that of loading what is cached. ``python -m streammerge.kernels.load`` is that child.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from .contract import Kernels

# A merge is done by what ``stored`` compiles into one; the others are loaded one by one if something else calls them.
_MERGING = ("kernels.stored",)
_PRIMITIVES = ("formats.codecs", "kernels.ram", "kernels.sums", "kernels.selection", "kernels.masks", "kernels.cpu")


def load_cpu(notify: Callable[[str], None] = lambda text: None, *, one_by_one: bool = False) -> Kernels:
    """The Numba backend, compiled or from the cache. ``notify`` is told if it has to be compiled. ``one_by_one``: load
    all primitives, for those who call them and not methods."""
    text = "compiling the kernels for this processor, once (some 10 seconds)"
    _compile((*_PRIMITIVES, *_MERGING), text, notify)
    _load((*_PRIMITIVES, *_MERGING) if one_by_one else _MERGING)
    from .cpu import CPU

    return CPU()


def load_quants(types: Collection[str], notify: Callable[[str], None] = lambda text: None) -> None:
    """The encoders and decoders of these types, as ``load_cpu``."""
    from ..formats.quants import families

    modules = [f"formats.quants.{family}" for family in families(types)]
    if modules:
        _compile(modules, "compiling the quantization kernels, once (up to a minute for each family of types)", notify)
        _load(modules)


def _load(modules: Sequence[str]) -> None:
    from ..formats.jit import kernels_of

    for module in modules:
        for kernel in kernels_of(import_module(f"streammerge.{module}")):
            kernel.load()


def _compile(modules: Sequence[str], text: str, notify: Callable[[str], None]) -> None:
    from ..formats.jit import CACHE

    stamps = [CACHE / f"compiled-{module}-{_fingerprint()}" for module in modules]
    missing = [module for module, stamp in zip(modules, stamps) if not stamp.exists()]
    if missing:
        notify(text)
        child = subprocess.run(
            [sys.executable, "-P", "-m", "streammerge.kernels.load", *missing],
            env={**os.environ, "STREAMMERGE_CACHE_DIR": str(CACHE.parent)},
            capture_output=True,
        )
        if child.returncode != 0:
            notify(
                "compiling failed in a process of its own; it is tried in this one, beyond the memory that was planned"
            )
        else:
            for stamp in stamps:
                stamp.touch()


@cache
def _fingerprint() -> str:
    """Changes with whatever makes Numba compile anew: its version, the processor, the sources."""
    import llvmlite.binding
    import numba

    sources = Path(__file__).parent.glob("*.py")  # Numba looks at their times, too
    facts = [numba.__version__, llvmlite.binding.get_host_cpu_name(), sys.version]
    facts += sorted(f"{source} {source.stat().st_mtime_ns} {source.stat().st_size}" for source in sources)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    _load(sys.argv[1:] or (*_PRIMITIVES, *_MERGING))
