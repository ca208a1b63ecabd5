"""What a result depends on beside the code: the machine, the versions, the date. No names of hosts or folders."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent


def machine() -> dict[str, str]:
    """Processor, cores, memory, kernel."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions(*packages: str) -> dict[str, str]:
    """Python, the packages, and the revision of this repository; ``+`` marks files that differ from it."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", "numba", *packages)}
    return {"python": platform.python_version(), **found, "streammerge": f"{_own_version()} ({_revision()})"}


def today() -> str:
    """The date in ISO form."""
    return datetime.date.today().isoformat()


def version_beside(script: Path, package: str) -> str:
    """The version of a package in the environment that an installed script belongs to."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = script.parent / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in facts.items()}
        model, family = named.get("model name"), named.get("cpu family")
        if model:
            return model if family is None else f"{model} (family {family}, model {named.get('model', '?')})"
    return platform.processor() or platform.machine()


def _own_version() -> str:
    return importlib.metadata.version("streammerge")


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    revision = git("rev-parse", "--short", "HEAD") or "unknown"
    engine = ("streammerge", "formats")
    return revision + ("+" if git("status", "--porcelain", "--", *engine) else "")
