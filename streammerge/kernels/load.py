"""Loads the compiled kernels, and compiles them first, in a process of its own, where that has not been done.

LLVM needs more memory than most merges: a child that ends gives it all back, so the peak of the merging process
stays that of loading what is cached. ``python -m streammerge.kernels.load`` is that child.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .contract import Kernels


def load_cpu(notify: Callable[[str], None] = lambda text: None) -> Kernels:
    """The Numba backend, compiled or from the cache. ``notify`` is told if it has to be compiled."""
    from ..formats.jit import CACHE

    stamp = CACHE / f"compiled-{_fingerprint()}"
    if not stamp.exists():
        notify("compiling the kernels for this processor, once (some 10 seconds)")
        child = subprocess.run(
            [sys.executable, "-m", "streammerge.kernels.load"],
            env={**os.environ, "STREAMMERGE_CACHE_DIR": str(CACHE.parent)},
            capture_output=True,
        )
        if child.returncode == 0:
            stamp.touch()
    return _import()


def _import() -> Kernels:
    from ..formats.codecs import decode  # noqa: F401  (compiled with the kernels, used by the workers)
    from .cpu import CPU

    return CPU()


def _fingerprint() -> str:
    """Changes with whatever makes Numba compile anew: its version, the processor, the sources."""
    import llvmlite.binding
    import numba

    package = Path(__file__).parent.parent
    formats = Path(sys.modules["streammerge.formats"].__file__ or "").parent
    sources = [package / "kernels" / "cpu.py", formats / "codecs.py", formats / "jit.py"]
    facts = [numba.__version__, llvmlite.binding.get_host_cpu_name(), sys.version]
    facts += [f"{source} {source.stat().st_mtime_ns} {source.stat().st_size}" for source in sources]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    _import()
