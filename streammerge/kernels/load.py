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

_CPU = ("formats.codecs", "kernels.cpu", "kernels.stored")


def load_cpu(notify: Callable[[str], None] = lambda text: None) -> Kernels:
    """The Numba backend, compiled or from the cache. ``notify`` is told if it has to be compiled."""
    _load(_CPU, "compiling the kernels for this processor, once (some 10 seconds)", notify)
    from .cpu import CPU

    return CPU()


def load_quants(types: Collection[str], notify: Callable[[str], None] = lambda text: None) -> None:
    """The encoders and decoders of these types, as ``load_cpu``."""
    from ..formats.quants import families

    modules = [f"formats.quants.{family}" for family in families(types)]
    if modules:
        _load(modules, "compiling the quantization kernels, once (up to a minute for each family of types)", notify)


def _load(modules: Sequence[str], text: str, notify: Callable[[str], None]) -> None:
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
    for module in modules:
        import_module(f"streammerge.{module}")


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
    for name in sys.argv[1:] or _CPU:
        import_module(f"streammerge.{name}")
