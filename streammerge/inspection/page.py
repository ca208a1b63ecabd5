"""The statistics as one HTML file that needs nothing else: heat maps by plotly.js, which stands in the file itself.

Written piece by piece, aside and renamed at the end. Text from checkpoints and paths is escaped wherever it stands:
in HTML by ``escape``, in the data by ``_inert``; the page's script escapes what it gives to plotly.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from ..errors import OutputError, RecipeError
from .advice import advise
from .fields import AGENT, PAIR, Field
from .numbers import Numbers
from .result import Inspection
from .text import layer_name, share

_PIECE = 1 << 16


def check(path: Path) -> None:
    """Raises RecipeError or OutputError if a page cannot be made or written there."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"{path}: a page's name ends in .html")
    _plotly()
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(f"{path}: cannot be written there; name a file in a folder that can")


def write(found: Inspection, path: Path) -> None:
    """Write the page. Raises OutputError."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            _write(found, file)
        aside.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def _plotly() -> Path:
    """The library as the plotly package brings it. Found without importing that package, which takes memory."""
    spec = find_spec("plotly")
    for folder in spec.submodule_search_locations or () if spec else ():
        script = Path(folder, "package_data", "plotly.min.js")
        if script.is_file():
            return script
    raise RecipeError("--html needs the plotly package; install it: pip install 'streammerge[html]'")


def _write(found: Inspection, file: TextIO) -> None:
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    parts: Mapping[str, Callable[[Inspection], Iterable[str]]] = {
        "summary": _summary,
        "agent-tables": _agent_tables,
        "pair-tables": _pair_tables,
        "data": _data,
        "plotly": lambda _: _script(),
    }
    for number, text in enumerate(re.split(r"<!--@([a-z-]+)-->", template)):
        file.writelines(parts[text](found) if number % 2 else [text])


def _script() -> Iterator[str]:
    with _plotly().open(encoding="utf-8") as script:
        while piece := script.read(_PIECE):
            yield piece


# --- tables -----------------------------------------------------------------------------------------------------------


def _summary(found: Inspection) -> Iterator[str]:
    left = f"; {len(found.left_out)} not compared" if found.left_out else ""
    yield (
        f'<p class="about">{len(found.agents)} agents against the base <b>{escape(found.base)}</b>: '
        f"{len(found.tensors):,} tensors, {int(found.total.elements):,} weights{left}; "
        f"epsilon {found.epsilon:g}; streammerge {__version__}</p>\n"
    )
    for item in advise(found):
        title = "Warning" if item.kind == "warning" else "Note"
        yield f'<p class="advice {item.kind}" data-rule="{item.rule}"><b>{title}</b>{escape(item.text)}</p>\n'
    yield "<h2>The whole model</h2>\n"
    agents = ((name, found.total.agent(number)) for number, name in enumerate(found.agents))
    yield from _statistics("agent", AGENT, agents)


def _agent_tables(found: Inspection) -> Iterator[str]:
    layers = {layer_name(layer): numbers for layer, numbers in found.layers.items()}
    yield '<details open><summary>density in numbers</summary><div class="tables">\n'
    for kind, groups in (("module", found.modules), ("layer", layers)):
        yield from _densities(kind, groups, found.agents)
    yield "</div></details>\n"


def _pair_tables(found: Inspection) -> Iterator[str]:
    if found.pairs:
        yield "<h2>Pairs in the whole model</h2>\n"
        yield from _statistics(
            "pair", PAIR, ((found.pair_name(*pair), found.total.pair(*pair)) for pair in found.pairs)
        )


def _statistics(first: str, fields: Sequence[Field[Any]], rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
    titles = "".join(f'<th title="{escape(field.meaning)}">{escape(field.title)}</th>' for field in fields)
    yield f'<div class="card"><table><thead><tr><th>{first}</th>{titles}</tr></thead><tbody>\n'
    for name, of in rows:
        yield f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{field.write(field.value(of))}</td>" for field in fields)
        yield "</tr>\n"
    yield "</tbody></table></div>\n"


def _densities(kind: str, groups: Mapping[str, Numbers], agents: Sequence[str]) -> Iterator[str]:
    titles = "".join(f"<th>{escape(name)}</th>" for name in agents)
    yield f'<div class="card"><table><thead><tr><th>{kind}</th><th>weights</th>{titles}</tr></thead><tbody>\n'
    for name, numbers in groups.items():
        densities = "".join(f"<td>{share(numbers.agent(number).density)}</td>" for number in range(len(agents)))
        yield f"<tr><td>{escape(name)}</td><td>{int(numbers.elements):,}</td>{densities}</tr>\n"
    yield "</tbody></table></div>\n"


# --- data of the heat maps --------------------------------------------------------------------------------------------


def _inert(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(found: Inspection) -> Iterator[str]:
    layers, modules, grid = found.grid
    for key, value in (
        ("layers", [layer_name(layer) for layer in layers]),
        ("modules", modules),
        ("grid", grid),
        ("agentFields", [_field(field) for field in AGENT]),
        ("pairFields", [_field(field) for field in PAIR]),
    ):
        yield f"{',' if key != 'layers' else '{'}\n{_inert(key)}: {_inert(value)}"
    yield ',\n"agents": [' + "\n"
    for number, name in enumerate(found.agents):
        yield (
            ("," if number else "") + _inert({"name": name, "values": _values(AGENT, found.cells.agent(number))}) + "\n"
        )
    yield '],\n"pairs": [' + "\n"
    for number, pair in enumerate(found.pairs):
        total = {field.key: _short(field.value(found.total.pair(*pair))) for field in PAIR}
        facts = {"name": found.pair_name(*pair), "first": pair[0], "second": pair[1], "total": total}
        yield ("," if number else "") + _inert({**facts, "values": _values(PAIR, found.cells.pair(*pair))}) + "\n"
    yield "]}\n"


def _field(field: Field[Any]) -> dict[str, Any]:
    return {
        "key": field.key,
        "title": field.title,
        "meaning": field.meaning,
        "percent": field.write is share,
        "low": field.low,
        "high": field.high,
        "diverging": field.key in ("cosine", "sign_agreement"),
    }


def _values(fields: Sequence[Field[Any]], of: Any) -> dict[str, list[float | None]]:
    return {field.key: [_short(value) for value in field.value(of)] for field in fields}


def _short(value: Any) -> float | None:
    """Four digits are all that a colour or a pointer shows; None where there is no number."""
    number = float(value)
    return float(f"{number:.4g}") if abs(number) < float("inf") else None
