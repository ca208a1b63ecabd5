"""Where in a model a tensor is: its layer and its kind of module, from its name alone, whatever the architecture."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"(?P<stack>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Place:
    """``layer`` is the first number in the name, None outside the layers; ``module`` such as ``q_proj``."""

    layer: int | None
    module: str


def places_of(names: Iterable[str]) -> dict[str, Place]:
    """The place of every tensor. A module is called by the last part of its name where that says which one it is, else
    by all of it; experts are one module (``experts.*.w1``); stacks of layers are told apart where there are several."""
    parsed = {name: _parse(name) for name in names}
    stacks = {stack for stack, layer, _ in parsed.values() if layer is not None}
    meanings: dict[str, set[tuple[str, str]]] = {}
    for _, layer, rest in parsed.values():
        meanings.setdefault(_short(rest), set()).add((rest, "" if layer is None else "layers"))
    places = {}
    for name, (stack, layer, rest) in parsed.items():
        module = _short(rest) if len(meanings[_short(rest)]) == 1 else rest
        several = layer is not None and len(stacks) > 1
        places[name] = Place(layer, f"{stack}: {module}" if several else module)
    return places


def _parse(name: str) -> tuple[str, int | None, str]:
    """Stack, layer, and the rest without ``.weight``, every further number a star."""
    name = name.removesuffix(".weight")
    match = _NAME.fullmatch(name)
    if match is None:
        return "", None, name
    rest = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", match["rest"])
    return match["stack"].rstrip("."), int(match["layer"]), rest


def _short(rest: str) -> str:
    """``self_attn.q_proj`` is q_proj, ``self_attn.q_proj.bias`` q_proj.bias, ``mlp.experts.*.w1`` experts.*.w1."""
    parts = rest.split(".")
    if "*" in parts:
        return ".".join(parts[max(parts.index("*") - 1, 0) :])
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])
