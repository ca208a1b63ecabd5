"""Whether a manifest holds what is looked up in it: somebody may have edited it, or made it up."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from .formats.inputs import is_name

NAME = "streammerge-manifest.json"
_MAX_NAME = 255  # bytes of a file's name
_MAX_HEADER = 80 << 20  # bytes; those of GGUF are the largest
_SEGMENT = (1 << 13, 64 << 20)  # bytes; it is some 65,536 weights, whole rows or heads; one is in memory at a time


def check_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest, in words."""
    for key, kind in _KINDS.items():
        if not isinstance(facts.get(key), kind):
            yield f"{key!r} is missing, or not what it should be"
            continue
        if key in _ENTRIES:
            entries = facts[key].items() if kind is dict else enumerate(facts[key], 1)
            for name in (name for name, entry in entries if not _ENTRIES[key](name, entry)):
                yield f"{key!r}: what it says of {name!r:.200} cannot be"


def _is_file(name: str, facts: Any) -> bool:
    return (
        _is_path(name)
        and "/" not in name
        and isinstance(facts, dict)
        and _is_count(facts.get("size"))
        and _is_count(facts.get("header_size"), _MAX_HEADER)
        and isinstance(facts.get("header"), str)
    )


def _is_tensor(name: str, facts: Any) -> bool:
    if not (is_name(name) and isinstance(facts, dict) and isinstance(facts.get("parts"), list)):
        return False
    parts, segment = facts["parts"], facts.get("segment", -1)
    if not (all(map(_is_count, parts)) and _is_count(segment) and isinstance(facts.get("checksum"), str)):
        return False
    longest = max(parts, default=0)
    return bool(segment >= min(longest, _SEGMENT[0]) and min(segment, longest) <= _SEGMENT[1])


def _is_companion(name: str, facts: Any) -> bool:
    return _is_path(name) and isinstance(facts, str)


def _is_input(name: int, facts: Any) -> bool:
    return isinstance(facts, dict) and isinstance(facts.get("name"), str) and isinstance(facts.get("files"), list)


def _is_beside(name: int, facts: Any) -> bool:
    return isinstance(facts, dict) and isinstance(facts.get("name"), str)


def _is_path(name: str) -> bool:
    """Whether it can be the name of a file and stays inside."""
    parts = PurePosixPath(name).parts
    inside = "/" not in parts and ".." not in parts and PurePosixPath(name).as_posix() == name != "."
    names = (part.encode(errors="surrogatepass") for part in parts)
    return inside and all(0 < len(part) <= _MAX_NAME and 0 not in part for part in names)


def _is_count(value: Any, most: int = 2**63 - 1) -> bool:
    return type(value) is int and 0 <= value <= most


_KINDS = {
    "recipe": dict,
    "inputs": list,
    "beside": list,
    "files": dict,
    "tensors": dict,
    "companions": dict,
    "non_finite": int,
}
_ENTRIES: Mapping[str, Callable[[Any, Any], bool]] = {
    "inputs": _is_input, "beside": _is_beside, "files": _is_file, "tensors": _is_tensor, "companions": _is_companion,
}  # fmt: skip
