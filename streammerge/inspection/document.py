"""The statistics as JSON, complete, in pieces: a model of many tensors and agents makes more text than memory."""

import json
from collections.abc import Iterator
from typing import Any

from .. import __version__
from .advice import advise
from .fields import AGENT, PAIR
from .numbers import Numbers
from .result import Inspection
from .text import plain


def json_pieces(found: Inspection) -> Iterator[str]:
    """One JSON object. Numbers that do not exist are null; so is an infinite overlap ratio."""
    head: dict[str, Any] = {
        "streammerge": __version__,
        "base": found.base,
        "agents": list(found.agents),
        "epsilon": found.epsilon,
        "advice": [{"kind": item.kind, "rule": item.rule, "text": item.text} for item in advise(found)],
        "not_compared": dict(found.left_out),
        "seconds": found.seconds,
        "bytes_read": found.bytes_read,
        "peak": found.peak,
        "total": group(found, found.total),
    }
    yield json.dumps(head, indent=2)[:-2]
    yield from _array("layers", len(found.layers), _layers(found))
    yield from _array("modules", len(found.modules), _modules(found))
    yield from _array("cells", len(found.cells.rows), _cells(found))
    yield from _array("tensors", len(found.tensors), _tensors(found))
    yield "\n}\n"


def group(found: Inspection, numbers: Numbers) -> dict[str, Any]:
    """Every statistic of a tensor, or of several together."""
    agents = []
    for number, name in enumerate(found.agents):
        agent = numbers.agent(number)
        values = {field.key: plain(field.value(agent)) for field in AGENT}
        counts = {"changed": int(agent.changed), "unique": int(agent.unique)}
        agents.append({"agent": name, **counts, "shared": counts["changed"] - counts["unique"], **values,
                       "norm": plain(agent.norm), "repeated_values": plain(agent.coarseness)})  # fmt: skip
    pairs = []
    for first, second in found.pairs:
        pair = numbers.pair(first, second)
        names = {"agents": [found.agents[first], found.agents[second]], "changed_by_both": int(pair.both)}
        pairs.append({**names, **{field.key: plain(field.value(pair)) for field in PAIR}})
    return {
        "weights": int(numbers.elements),
        "changed_by_number_of_agents": [int(count) for count in numbers.by_count],
        "shared": int(numbers.shared),
        "base_norm": plain(numbers.base_norm),
        "base_repeated_values": plain(numbers.base_coarseness),
        "agents": agents,
        "pairs": pairs,
    }


def _array(name: str, length: int, items: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield f',\n  "{name}": ['
    for number, item in enumerate(items):
        yield f"\n    {json.dumps(item)}{',' if number + 1 < length else ''}"
    yield "\n  ]"


def _layers(found: Inspection) -> Iterator[dict[str, Any]]:
    for layer, numbers in found.layers.items():
        yield {"layer": layer, **group(found, numbers)}


def _modules(found: Inspection) -> Iterator[dict[str, Any]]:
    for module, numbers in found.modules.items():
        yield {"module": module, **group(found, numbers)}


def _cells(found: Inspection) -> Iterator[dict[str, Any]]:
    layers, modules, cells = found.grid
    places = {cell: (layer, module) for layer, row in zip(layers, cells) for module, cell in zip(modules, row)}
    for number, row in enumerate(found.cells.rows):
        layer, module = places[number]
        yield {"layer": layer, "module": module, **group(found, Numbers(row, found.columns))}


def _tensors(found: Inspection) -> Iterator[dict[str, Any]]:
    for tensor, row in zip(found.tensors, found.rows):
        facts = {"tensor": tensor.name, "shape": list(tensor.shape), "layer": tensor.place.layer,
                 "module": tensor.place.module}  # fmt: skip
        yield {**facts, **group(found, Numbers(row, found.columns))}
