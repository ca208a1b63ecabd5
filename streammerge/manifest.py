"""The manifest beside an output: what it was made from, and a checksum of everything in it.

Of a folder it is ``streammerge-manifest.json`` in it, of files ``OUT.manifest.json`` beside them. The same inputs and
recipe give the same manifest, byte for byte, on any machine and at any budget. The model card is not in it: it is there
to be edited.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checksum
from .errors import FormatError, OutputError
from .folder import CARD
from .formats.contract import OutputFile, Source
from .formats.inputs import kind_of, read_json
from .formats.safetensors import SafetensorsSource
from .ledger import Ledger
from .manifest_check import NAME, check_facts
from .planning import Plan, weights_of
from .provenance import Facts

VERSION = 1
_ENDING = ".manifest.json"
_MAX_BYTES, _MAX_VALUES = 128 << 20, 8_000_000  # of 150,000 tensors
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(\.gguf)")


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output is: of a folder inside it, of files beside them. A GGUF file may be named by the
    folder that it is alone in, one of several by the first of them."""
    if output.is_dir():
        files = [] if (output / NAME).exists() else list(output.glob(manifest_name(output / "*.gguf")))
        return files[0] if len(files) == 1 else output / NAME
    split = _SPLIT.fullmatch(output.name)
    return output.with_name(manifest_name(output.with_name(split[1] + split[2]) if split else output))


def manifest_name(output: Path) -> str:
    """What the manifest of an output file is called."""
    return f"{output.name}{_ENDING}"


def open_output(path: Path) -> Source:
    """Open a written model, a folder or a file, by its headers. Raises FormatError."""
    if path.suffix.lower() != ".gguf":
        return SafetensorsSource(path)
    from .formats.gguf import GgufSource  # the gguf package takes its time

    return GgufSource(path)


def open_told(place: Path, manifest: Mapping[str, Any]) -> Source:
    """Open the model that the manifest at ``place`` tells of. Raises FormatError."""
    return open_output(place.parent if place.name == NAME else place.parent / next(iter(manifest["files"]), ""))


def make_manifest(plan: Plan, run: Facts, ledger: Ledger, folder: Path) -> bytes:
    """The manifest of the finished weights in ``folder``. Their headers are read once more, and must hold as many
    weights as were planned. Raises OutputError if they do not."""
    written = open_output(folder if plan.is_folder else folder / plan.files[0].name)
    found, wanted = sum(info.elements for info in written.tensors.values()), _planned_weights(plan)
    if found != wanted:
        raise OutputError(
            f"{plan.output}: {found:,} weights were written, {wanted:,} planned: a defect; please report it"
        )
    inputs = [{**model, "files": [without_time(file) for file in model["files"]]} for model in run["inputs"]]
    facts = {
        "manifest": VERSION,
        **run,
        "inputs": inputs,
        "beside": [without_time(file) for file in run["beside"]],
        "checksums": checksum.ALGORITHM,
        "weights": wanted,
        "non_finite": ledger.total.non_finite_outputs,
        "files": {file.name: _header(file) for file in plan.files},
        "tensors": _tensors(plan, written, ledger.checksums()),
        "companions": {name: checksum.of_file(folder / name) for name in _companions(plan, folder)},
    }
    return json.dumps(facts, indent=1).encode() + b"\n"


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The manifest in a file. Raises FormatError if it is not one."""
    if kind_of(path) == "nothing":
        raise FormatError(f"{path}: no such file; only outputs with a manifest can be verified")
    facts = read_json(path, _MAX_BYTES, _MAX_VALUES)
    if facts.get("manifest") != VERSION:
        raise FormatError(f"{path}: is not a manifest of version {VERSION}, found {facts.get('manifest')!r:.80}")
    for problem in check_facts(facts):
        raise FormatError(f"{path}: {problem}; it is not as it was written")
    return _as_named_now(path.name.removesuffix(_ENDING), facts) if path.name != NAME else facts


def _as_named_now(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A single file may be renamed together with its manifest."""
    if len(facts["files"]) != 1 or name in facts["files"]:
        return facts
    tensors = {tensor: {**told, "file": name} for tensor, told in facts["tensors"].items()}
    return {**facts, "files": {name: next(iter(facts["files"].values()))}, "tensors": tensors}


def _companions(plan: Plan, folder: Path) -> Iterator[str]:
    return companions(folder, [file.name for file in plan.files]) if plan.is_folder else iter(())


def companions(folder: Path, weights: Collection[str]) -> Iterator[str]:
    """The files of an output folder beside ``weights``, card and manifest, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".") and name not in (CARD, NAME, *weights):
            yield name


def _planned_weights(plan: Plan) -> int:
    constants = plan.gguf.constants.values() if plan.gguf else ()
    return sum(weights_of(plan.jobs).values()) + sum(values.size for values in constants)


def _header(file: OutputFile) -> Facts:
    return {"size": file.size, "header_size": len(file.header), "header": checksum.digest(file.header).hex()}


def without_time(file: Facts) -> Facts:
    """A file's facts without when it was modified: a copy has another time."""
    return {name: value for name, value in file.items() if name != "modified"}


def _tensors(plan: Plan, written: Source, checksums: Mapping[str, str]) -> dict[str, Facts]:
    jobs: dict[str, list[Any]] = {}
    for job in plan.jobs:
        jobs.setdefault(job.target.name if job.target else job.name, []).append(job)
    facts = {}
    for name, info in written.tensors.items():
        made = jobs.get(name, [])
        facts[name] = {
            "file": info.file.name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "from": [job.name for job in made],
            "origin": _origin([job.action for job in made]),
            "parts": [job.written(job.elements) for job in made] or [info.nbytes],
            "segment": made[0].written(made[0].segment) if made else info.nbytes,
            "checksum": checksums[name],
        }
    return facts


def _origin(actions: Sequence[str]) -> str:
    if not actions:
        return "computed"
    return "merged" if "merge" in actions else "base"
