"""The statistics on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..budget import format_size
from .advice import advise
from .fields import AGENT, PAIR
from .numbers import Numbers
from .result import Inspection
from .text import layer_name, share

# As many agents stand beside each other in 80 columns; as many pairs are worth reading, the rest is in JSON and page.
_ABREAST = 5
_PAIRS = 10


def show(found: Inspection, console: Console) -> None:
    """Print everything, for people."""
    weights = int(found.total.elements)
    console.print(Text(f"{found.base}: {len(found.tensors)} tensors, {weights:,} weights compared"), highlight=False)
    for item in advise(found):
        mark = Text(f"{item.kind}: ", style="bold yellow" if item.kind == "warning" else "bold green")
        console.print(Padding(mark + Text(item.text, style="default"), (0, 0, 0, 2)), highlight=False)
    for part in _parts(found):
        console.print()
        console.print(part)
    console.print(_end(found), highlight=False, markup=False)


def _parts(found: Inspection) -> list[RenderableType]:
    parts: list[RenderableType] = [_agents(found)]
    if found.pairs:
        parts.append(_pairs(found))
    return [*parts, *_densities(found, "module", found.modules), *_densities(found, "layer", _named(found))]


def _named(found: Inspection) -> dict[str, Numbers]:
    return {layer_name(layer): numbers for layer, numbers in found.layers.items()}


def _agents(found: Inspection) -> Table:
    table = _table("agent", *(field.title for field in AGENT))
    for number, name in enumerate(found.agents):
        agent = found.total.agent(number)
        table.add_row(Text(name), *(field.write(field.value(agent)) for field in AGENT))
    return table


def _pairs(found: Inspection) -> Table:
    """The pairs that overlap most, if there are many."""
    chosen = found.pairs
    more = len(chosen) - _PAIRS
    if more > 0:
        chosen = sorted(chosen, key=lambda pair: -_known(found.total.pair(*pair).overlap))[:_PAIRS]
    table = _table("pair", *(field.title for field in PAIR))
    for pair in chosen:
        values = found.total.pair(*pair)
        table.add_row(Text(found.pair_name(*pair)), *(field.write(field.value(values)) for field in PAIR))
    if more > 0:
        table.caption = f"and {more} pairs that overlap less; --json and --html have all"
    return table


def _densities(found: Inspection, kind: str, groups: Mapping[str, Numbers]) -> list[Table]:
    tables = []
    for first in range(0, len(found.agents), _ABREAST):
        agents = range(first, min(first + _ABREAST, len(found.agents)))
        table = _table(f"density by {kind}", *(Text(found.agents[agent]) for agent in agents))
        for name, numbers in groups.items():
            table.add_row(Text(name), *(share(numbers.agent(agent).density) for agent in agents))
        tables.append(table)
    return tables


def _known(value: Any) -> float:
    return float(value) if value == value else -1.0


def _table(first: str, *columns: str | Text) -> Table:
    """Headers break at their first space, so that 80 columns hold seven numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text(first), overflow="fold", min_width=12, vertical="bottom")
    for column in columns:
        header = Text(column.replace(" ", "\n", 1)) if isinstance(column, str) else column
        table.add_column(header, justify="right", vertical="bottom", overflow="fold")
    return table


def _end(found: Inspection) -> str:
    speed = found.bytes_read / max(found.seconds, 1e-9) / 1e9
    left = f"; not compared: {len(found.left_out)} tensors" if found.left_out else ""
    return f"\n{found.seconds:.1f} s, {speed:.2f} GB/s, memory: peak {format_size(found.peak)}{left}"
