"""The rest of a model folder: every file of the base that is no weight, config.json with the right dtype, the card."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import OutputError
from .formats.atomic import copy_file, write_file
from .formats.dtypes import DTYPES, TORCH_NAMES
from .formats.inputs import read_input, read_json
from .jobs import TensorJob
from .planning import Plan
from .report import AgentShare, model_card

CARD = "README.md"
CONFIG = "config.json"
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def complete_folder(plan: Plan, folder: Path, shares: Sequence[AgentShare]) -> None:
    """Put everything beside the weights into ``folder``."""
    for source, relative in copied(plan):
        _copy(source / relative, folder / relative)
    if Path(CONFIG) in plan.base.other_files:
        write_file(folder / CONFIG, _config(plan))
    write_file(folder / CARD, model_card(plan, shares).encode())


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a folder of the base is called like a file of the output
        raise OutputError(f"{target.parent}: cannot be made for {source}: {error.strerror}") from error
    copy_file(source, target)


def copied(plan: Plan) -> Iterator[tuple[Path, Path]]:
    """Files to copy, as folder and name in it: the base's, but for those of a tokenizer."""
    for model in {plan.base.path: plan.base, plan.tokenizer.path: plan.tokenizer}.values():
        for relative in model.other_files:
            home = plan.tokenizer if _is_tokenizer(relative) else plan.base
            if home.path == model.path and str(relative) not in (CARD, CONFIG):
                yield model.path, relative


def _is_tokenizer(relative: Path) -> bool:
    return relative.name in _TOKENIZER or relative.parts[0] == "additional_chat_templates"


def _config(plan: Plan) -> bytes:
    """The base's config.json: as it is, byte for byte, if it says what is right already."""
    path = plan.base.path / CONFIG
    config = dict(plan.base.config)
    right = TORCH_NAMES[main_dtype(plan.jobs)]
    if config == read_json(path) and _says(config, right):
        return read_input(path)
    return json.dumps(_with_dtype(config, right), indent=2).encode() + b"\n"


def main_dtype(jobs: Sequence[TensorJob]) -> str:
    """The floating type that most weights of the output have."""
    sizes: dict[str, int] = {}
    for job in jobs:
        if DTYPES[job.dtype].floating:
            sizes[job.dtype] = sizes.get(job.dtype, 0) + job.elements
    return max(sizes, key=lambda dtype: sizes[dtype])


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config and the ones inside it (text_config, vision_config)."""
    inner = [value for name, value in config.items() if name.endswith("_config") and isinstance(value, dict)]
    return [config, *inner]


def _says(config: dict[str, Any], right: str) -> bool:
    said = [part[key] for part in _parts(config) for key in ("dtype", "torch_dtype") if key in part]
    return bool(said) and all(value == right for value in said)


def _with_dtype(config: dict[str, Any], right: str) -> dict[str, Any]:
    found = False
    for part in _parts(config):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = right
                found = True
    return config if found else {**config, "torch_dtype": right}
