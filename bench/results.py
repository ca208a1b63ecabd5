"""Tables as Markdown for people and as JSON for programs, with all that a figure depends on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import ROOT, machine, today, versions

RESULTS = ROOT / "bench" / "results"
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and rows as long as these."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table in Markdown; numbers stand to the right."""
        align = ["---" if isinstance(row, str) else "---:" for row in (self.rows or [self.columns])[0]]
        lines = [self.columns, align, *([_text(cell) for cell in row] for row in self.rows)]
        return f"{self.caption}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@dataclass
class Result:
    """All that one benchmark found. ``settings`` say how it was run, ``notes`` how to read it, ``runs`` are raw."""

    name: str
    title: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    packages: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """The page of this result."""
        facts = {"date": today(), **machine(), **versions(), **self.packages, **self.settings}
        lines = [f"# {self.title}", "", *(table.markdown() for table in self.tables)]
        lines += [*(f"- {note}" for note in self.notes), ""] if self.notes else []
        return "\n".join([*lines, "; ".join(f"{key}: {value}" for key, value in facts.items()), ""])

    def save(self, folder: Path = RESULTS) -> None:
        """Write NAME.md and NAME.json."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"date": today(), "machine": machine(), "versions": {**versions(), **self.packages}}
        (folder / f"{self.name}.md").write_text(self.markdown())
        (folder / f"{self.name}.json").write_text(json.dumps({**facts, **asdict(self)}, indent=1) + "\n")


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)


def middle(values: Sequence[float], digits: int = 2) -> str:
    """The median, with the least and the largest where there are several."""
    text = f"{median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def megabytes(size: float) -> str:
    """Bytes as 10^6."""
    return f"{size / 1e6:.0f} MB"
