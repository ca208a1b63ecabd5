"""mergekit, in an environment of its own, on the same inputs with its default options."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from bench.process import Run, run


def mergekit(script: Path, base: Path, agents: Sequence[Path], output: Path, method: str) -> Run:
    """Merge with ``mergekit-yaml``: bfloat16 in and out, everything else as it comes."""
    recipe = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(agent)} for agent in agents],
        "dtype": "bfloat16",
        "out_dtype": "bfloat16",  # or ramplus_tl writes float32, twice the size
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe))
        return run([script, path, output])
