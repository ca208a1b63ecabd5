"""What is done with a broken input, and what must be true if it is done."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
from rich.console import Console

import streammerge
import streammerge.statistics
from streammerge.api import merge_recipe, plan_recipe, recipe_of
from streammerge.escape import printable
from streammerge.inspection import document, page, table
from streammerge.inspection.run import inspect as inspect_models
from streammerge.mergekit_yaml import read_yaml
from streammerge.plantext import plan_text
from streammerge.report import summary
from tests import oracle
from tests.fuzz.guard import LONGEST, Broken
from tests.gguf.merging import PRE

TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """``broken``: which files of the corpus are, or folders of them; ``files``: prefixes of all that it reads,
    ``left``: of those that an earlier run left beside the output. ``confined``: no name in a file may lead out."""

    name: str
    run: Callable[[Path, Path], None]
    files: tuple[str, ...]
    broken: tuple[str, ...]
    left: tuple[str, ...] = ()
    confined: bool = False


def plan(folder: Path, out: Path) -> None:
    """Headers only, of one file."""
    _shown(streammerge.plan(folder / "base", [folder / "agent"], out / "m", method="ram"))


def plan_sharded(folder: Path, out: Path) -> None:
    """Headers only, with an index."""
    _shown(streammerge.plan(folder / "sharded", [folder / "agent"], out / "m", method="ram"))


def merge(folder: Path, out: Path) -> None:
    """All of it; what comes out must be right."""
    report = streammerge.merge(folder / "base", [folder / "agent"], out / "m", method="ram", max_shard_size="20KB")
    summary(report)
    json.dumps(report.to_dict())
    check_merged(folder, out / "m")


def gguf(folder: Path, out: Path) -> None:
    """Metadata and tokenizer."""
    _shown(streammerge.plan(folder / "base", [folder / "agent"], out / "folder", method="ram", quantize="Q8_0", **PRE))


def merge_gguf(folder: Path, out: Path) -> None:
    """All of it; the gguf package must read what comes out."""
    from gguf import GGUFReader

    output = out / "m.gguf"
    streammerge.merge(folder / "base", [folder / "agent"], output, method="ram", quantize="Q8_0", **PRE)
    if not GGUFReader(output).tensors:
        raise Broken("a GGUF file without tensors")


def template(folder: Path, out: Path) -> None:
    """A template is read, and compared with the base."""
    given = {"gguf_template": folder / "template.gguf", "quantize": "Q8_0"}
    _shown(streammerge.plan(folder / "base", [folder / "agent"], out / "folder", method="ram", **given))


def imatrix_dat(folder: Path, out: Path) -> None:
    """The older format."""
    given = {"imatrix": folder / "imatrix.dat", "quantize": "Q4_0", "max_ram": "1G"}
    _shown(streammerge.plan(folder / "base", [folder / "agent"], out / "m.gguf", method="ram", **given, **PRE))


def imatrix_gguf(folder: Path, out: Path) -> None:
    """The newer format."""
    given = {"imatrix": folder / "imatrix.gguf", "quantize": "Q4_0", "max_ram": "1G"}
    _shown(streammerge.plan(folder / "base", [folder / "agent"], out / "m.gguf", method="ram", **given, **PRE))


def recipe(folder: Path, out: Path) -> None:
    """YAML, whose paths count from the folder."""
    fields = read_yaml(folder / "recipe.yml")
    fields["base"] = folder / fields["base"]
    fields["agents"] = [folder / agent for agent in fields["agents"]]
    _shown(plan_recipe(recipe_of(output=out / "m", **fields)))


def merge_recipe_file(folder: Path, out: Path) -> None:
    """YAML, all the way."""
    fields = read_yaml(folder / "recipe.yml")
    fields["base"], fields["agents"] = folder / "base", [folder / "agent"]
    merge_recipe(recipe_of(output=out / "m", **fields))


def verify(folder: Path, out: Path) -> None:
    """A folder and its manifest, on their own and against the models."""
    _verified(folder, out, "merged")


def verify_gguf(folder: Path, out: Path) -> None:
    """A file and its manifest."""
    _verified(folder, out, "merged.gguf")


def _verified(folder: Path, out: Path, name: str) -> None:
    with patch("tempfile.tempdir", str(out)):
        models = [folder / "base", folder / "agent"]
        found = streammerge.verify(folder / name, models, share=1.0, threads=2)
    shown = [printable(line) for line in found.lines()]
    json.dumps(found.to_dict())
    if any(len(line) > LONGEST for line in shown):
        raise Broken(f"a problem of {max(map(len, shown))} characters")


def unfinished(folder: Path, out: Path) -> None:
    """What an earlier run left must not be lost."""
    _merge_long(folder, out)


def overwrite(folder: Path, out: Path) -> None:
    """What an earlier run left changes nothing."""
    _merge_long(folder, out, overwrite=True)
    check_merged(folder, out / "m", "long-base", "long-agent")


def resume(folder: Path, out: Path) -> None:
    """A journal that lies may make wrong bytes, and no more than that; the manifest tells of them, mostly."""
    _merge_long(folder, out, resume=True)
    with patch("tempfile.tempdir", str(out)):
        streammerge.verify(out / "m", [folder / "long-base", folder / "long-agent"], share=1.0)


def _merge_long(folder: Path, out: Path, **options: Any) -> None:
    models = folder / "long-base", [folder / "long-agent"]
    report = streammerge.merge(*models, out / "m", method="ram", threads=1, **options)
    json.dumps(report.to_dict())


def inspect(folder: Path, out: Path) -> None:
    """A table, JSON and a page."""
    found = inspect_models(folder / "base", [folder / "agent", folder / "wide"], threads=2)
    json.loads("".join(document.json_pieces(found)))
    with StringIO() as text:
        table.show(found, Console(file=text, width=100))
        if not all(line.isprintable() for line in text.getvalue().split("\n")):
            raise Broken("the table holds what a terminal obeys")
    page.write(found, out / "page.html")


def vocabulary(folder: Path, out: Path) -> None:
    """Rows by id; companions are compared."""
    models = folder / "base", [folder / "agent", folder / "wide"]
    planned = streammerge.plan(*models, out / "m", method="ram")
    _shown(planned)
    if any(len(printable(notice)) > LONGEST for notice in planned.notices):
        raise Broken("a notice that is too long")
    streammerge.merge(*models, out / "m", method="ram")


def statistics(folder: Path, out: Path) -> None:
    """What is in the cache is used or replaced; what comes out is the same, mostly."""
    with patch.object(streammerge.statistics, "FOLDER", out / "statistics"):
        streammerge.merge(folder / "base", [folder / "agent"], out / "m", method="ram+")


_CONFIGS = ("base/config.json", "base/model.safetensors", "agent/model.safetensors")
_TOKENIZER = ("base/tokenizer.json", "base/tokenizer_config.json", "base/special_tokens_map.json", "base/config.json",
              "base/README.md", "base/generation_config.json", "base/chat_template.jinja",
              "base/additional_chat_templates/tool.jinja")  # fmt: skip
BOTH = ("base/", "agent/")
_WIDE = ("wide/tokenizer.json", "wide/tokenizer.json", "wide/config.json", "wide/tokenizer_config.json",
         "wide/model.safetensors", "wide/chat_template.json", "wide/generation_config.json", "base/tokenizer.json",
         "base/chat_template.jinja", "base/special_tokens_map.json")  # fmt: skip
_MANIFEST = "merged/streammerge-manifest.json"
_SHARDS = ("merged/model.safetensors.index.json", "merged/model-00001-of-00009.safetensors",
           "merged/model-00002-of-00009.safetensors")  # fmt: skip
_GGUF = ("merged.gguf.manifest.json", "merged.gguf.manifest.json", "merged.gguf")
_LONG, _LEFT = ("long-", "m.partial/"), ("m.partial/",)
_PARTIAL = ("m.partial/.journal", "m.partial/.journal", "m.partial/.lock", "m.partial/model.safetensors")
TARGETS = (
    Target("plan", plan, BOTH, _CONFIGS),
    Target("plan", plan, BOTH, ("base/model.safetensors",)),
    Target("sharded", plan_sharded, ("sharded/", "agent/"), ("sharded/model.safetensors.index.json",)),
    Target("sharded", plan_sharded, ("sharded/", "agent/"), ("sharded/model-00001-of-00002.safetensors",)),
    Target("merge", merge, BOTH, (*_CONFIGS, "base/tokenizer.json", "base/README.md")),
    Target("gguf", gguf, BOTH, _TOKENIZER),
    Target("gguf", gguf, BOTH, _TOKENIZER),
    Target("merge to GGUF", merge_gguf, BOTH, (*_TOKENIZER, *_CONFIGS)),
    Target("template", template, (*BOTH, "template.gguf"), ("template.gguf",)),
    Target("template", template, (*BOTH, "template.gguf"), ("template.gguf", "base/model.safetensors")),
    Target("imatrix.dat", imatrix_dat, (*BOTH, "imatrix.dat"), ("imatrix.dat",)),
    Target("imatrix.gguf", imatrix_gguf, (*BOTH, "imatrix.gguf"), ("imatrix.gguf",)),
    Target("recipe", recipe, (*BOTH, "recipe.yml"), ("recipe.yml",)),
    Target("merge a recipe", merge_recipe_file, (*BOTH, "recipe.yml"), ("recipe.yml",)),
    Target("verify", verify, (*BOTH, "merged/"), (_MANIFEST,), confined=True),
    Target("verify", verify, (*BOTH, "merged/"), (_MANIFEST, *_SHARDS), confined=True),
    Target("verify GGUF", verify_gguf, (*BOTH, "merged.gguf"), _GGUF, confined=True),
    Target("unfinished", unfinished, _LONG, _PARTIAL, _LEFT),
    Target("overwrite", overwrite, _LONG, _PARTIAL, _LEFT),
    Target("resume", resume, _LONG, _PARTIAL, _LEFT),
    Target("resume", resume, _LONG, ("m.partial/.journal",), _LEFT),
    Target("inspect", inspect, (*BOTH, "wide/"), (*_CONFIGS, "wide/model.safetensors")),
    Target("vocabulary", vocabulary, (*BOTH, "wide/"), _WIDE),
    Target("statistics", statistics, (*BOTH, "statistics/"), ("statistics",), ("statistics/",)),
)


def _shown(planned: streammerge.Plan) -> None:
    """A plan can be printed: one line each, as JSON."""
    if not all(line.isprintable() for line in plan_text(planned).split("\n")):
        raise Broken("the plan's text holds what a terminal obeys")
    planned.to_json()


# --- is it right? ----------------------------------------------------------------------------------------------------


def check_merged(folder: Path, merged: Path, ours: str = "base", theirs: str = "agent") -> None:
    """Every tensor of the base is there once, as the formula says; whatever broke the input."""
    base, agent, found = (read_tensors(place) for place in (folder / ours, folder / theirs, merged))
    if base.keys() != found.keys():
        raise Broken(f"tensors differ: {sorted(base.keys() ^ found.keys())[:5]}")
    for name, (dtype, shape, raw) in base.items():
        if dtype in TYPES:
            wanted = merged_values(dtype, raw, agent[name][2]) if raw else b""
            same = wanted == found[name][2] or dtype == "F64"  # float64 is computed in float32
        else:
            same = raw == found[name][2]
        if not same or found[name][:2] != (dtype, shape):
            raise Broken(f"tensor {name!r:.100} is not what it should be")


def merged_values(dtype: str, base: bytes, agent: bytes) -> bytes:
    """The oracle's bytes of one tensor."""
    kind = np.dtype(TYPES[dtype])
    with np.errstate(all="ignore"):
        ours, theirs = (np.frombuffer(raw, kind).astype(np.float32) for raw in (base, agent))
        merged = oracle.ram(ours, theirs[None])
        unchanged = np.frombuffer(base, kind)
        return np.where(oracle.changed_by(ours, theirs, 1e-5), merged.astype(kind), unchanged).tobytes()


def read_tensors(folder: Path) -> dict[str, tuple[str, tuple, bytes]]:
    """Dtype, shape, bytes by name, by nothing but the format's description."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__":
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                found[name] = entry["dtype"], tuple(entry["shape"]), raw[start:stop]
    return found
