"""What the command prints and writes: table, JSON, page, errors; the memory it takes."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from io import StringIO

import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

import streammerge
from streammerge.cli import cli
from streammerge.errors import RecipeError
from streammerge.inspection import page, table
from streammerge.inspection.document import group
from tests.checks import save_models
from tests.inspection.models import inspect, make_models
from tests.test_cli import models, run
from tests.test_memory import _MEASURE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLOTLY = find_spec("plotly") is not None
needs_plotly = pytest.mark.skipif(not PLOTLY, reason="plotly is not installed")


def flat(paths):
    return [paths[0], *paths[1]]


@pytest.fixture(scope="module")
def found(tiny):
    return streammerge.inspect(tiny / "base", [tiny / f"agent-{i}" for i in range(3)], max_ram="8G")


def shown(found, columns):
    console = Console(file=StringIO(), width=columns)
    table.show(found, console)
    text = console.file.getvalue()
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= columns
    return text


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(found, columns):
    text = shown(found, columns)
    for number in range(3):
        assert f"{float(found.total.agent(number).density):.2%}" in text
        assert f"{float(found.total.agent(number).largest):.3g}" in text
    for said in ("overlap", "agreement", "density by module", "q_proj", "density by layer", "outside", "ram+ are made"):
        assert said in " ".join(text.split())
    assert "memory: peak" in text and "agent-0 × agent-2" in text  # noqa: RUF001


def test_many_agents_still_fit(tmp_path):
    text = shown(inspect(tmp_path, *make_models(7)), 80)
    assert "and 11 pairs that overlap less" in text and text.count("density by layer") == 2


def test_json_is_all_that_is_printed(tiny, found):
    done = run("inspect", *models(tiny), "--json", "-q")
    printed = json.loads(done.stdout)
    assert done.stderr == "" and len(printed["agents"]) == 3 and len(printed["total"]["pairs"]) == 3
    assert len(printed["tensors"]) == len({tensor["tensor"] for tensor in printed["tensors"]})
    assert sum(tensor["weights"] for tensor in printed["tensors"]) == printed["total"]["weights"]
    assert printed["total"] == json.loads(json.dumps(group(found, found.total)))


def test_the_command_prints_the_table_and_can_be_quiet(tiny):
    done = run("inspect", *models(tiny), env={"COLUMNS": "80"})
    assert "density by module" in done.stdout and "comparing base and agents" in done.stderr
    assert "to write" not in done.stderr
    quiet = CliRunner().invoke(cli, ["inspect", *map(str, models(tiny)), "-q", "--max-ram", "1G"])
    assert quiet.exit_code == 0 and quiet.output == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--max-ram", "1M"], 3, "--max-ram 1 MiB is too small.*try --max-ram"),
        (["--epsilon", "-1"], 2, "--epsilon must be a number from 0 up, found -1.0"),
        (["--epsilon", "nan"], 2, "--epsilon must be a number from 0 up"),
        (["--html", "page.txt"], 2, "page.txt: a page's name ends in .html"),
        (["--html", "nowhere/page.html"], 1, "nowhere/page.html: cannot be written there"),
        (["--only", "absent"], 2, "--only 'absent' matches no tensor"),
        (["nowhere"], 1, "nowhere: no such file or folder"),
    ],
)
def test_errors_say_what_is_wrong(tiny, arguments, code, said):
    error = CliRunner().invoke(cli, ["inspect", *map(str, models(tiny)), *arguments]).exception
    assert isinstance(error, streammerge.StreammergeError) and error.exit_code == code
    assert re.search(said, str(error)) and "\n" not in str(error)


def test_options_come_from_the_environment(tiny):
    arguments = ["inspect", *map(str, models(tiny))]
    assert CliRunner().invoke(cli, arguments, env={"STREAMMERGE_MAX_RAM": "1M"}).exception.exit_code == 3
    env = {"STREAMMERGE_EPSILON": "-2"}
    assert "found -2.0" in str(CliRunner().invoke(cli, arguments, env=env).exception)


def test_a_value_that_is_not_finite_is_named(tmp_path):
    base, made = make_models(1)
    made[0]["model.norm.weight"] = np.where(np.arange(64) == 5, np.float32("nan"), made[0]["model.norm.weight"])
    with pytest.raises(streammerge.StreammergeError, match=r"model.norm.weight' holds nan at index \[5\]"):
        inspect(tmp_path, base, made)


def test_without_plotly_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"--html needs the plotly package; install it: pip install 'streammerge\[html\]'"
    ):
        page.check(tmp_path / "page.html")


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4 to ask the operating system")
@pytest.mark.parametrize(("agents", "io"), [(3, "mmap"), (16, "pread")])
def test_the_peak_is_within_the_least_budget(tmp_path, agents, io):
    """The page and JSON are made within it, too; and the numbers are those of a large one."""
    rng = np.random.default_rng(0)
    base = {f"model.layers.{i}.w.weight": rng.standard_normal((700, 1000)).astype("f4") for i in range(3)}
    made = [{name: values + np.float32(0.01 + i) for name, values in base.items()} for i in range(agents)]
    paths = save_models(tmp_path, base, made)
    refused = run("inspect", *flat(paths), "--max-ram", "1M")
    assert refused.returncode == 3 and "Traceback" not in refused.stderr
    least = re.search(r"try --max-ram (\d+)M", refused.stderr).group(1)
    options = ["--json", "-q", "--io", io, "--max-ram", f"{least}M"]
    options += ["--html", str(tmp_path / "page.html")] if PLOTLY else []
    script = _MEASURE.replace('"merge", ', '"inspect", ')
    command = [sys.executable, "-S", "-c", script, *map(str, flat(paths)), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    text, _, peak = done.stdout.rstrip().rpartition("\n")
    assert int(peak) <= int(least) << 20
    found = streammerge.inspect(*paths, max_ram="2G")
    assert json.loads(text)["total"] == json.loads(json.dumps(group(found, found.total)))


# --- the page -------------------------------------------------------------------------------------------------------

HOSTILE = "<script>document.title='owned'<"


@pytest.fixture
def hostile(tmp_path):
    """A page of models whose paths and tensors try to be markup."""
    base, made = make_models(3)
    for model in (base, *made):
        model["model.layers.1.</script><script>document.title='owned'</script>.weight"] = model["model.norm.weight"]
        model["model.layers.1.</script ><img src=x>.weight"] = model["model.norm.weight"]
        model["model.layers.1.<b>&amp;.weight"] = model["model.norm.weight"]
    folder = tmp_path / HOSTILE
    folder.mkdir()
    base_path, paths = save_models(folder, base, made, {})
    paths[0] = paths[0].rename(folder / f"{HOSTILE}img src=x onerror=alert(1)>")
    found = streammerge.inspect(base_path, paths, max_ram="1G")
    page.write(found, tmp_path / "page.html")
    return found, tmp_path / "page.html"


class Outline(HTMLParser):
    """Start tags, addresses that would be fetched, and the text of table cells."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.cells, self._in_cell = [], [], [], False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self._in_cell = tag == "td"

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data)


@needs_plotly
def test_the_page_stands_alone_and_nothing_in_it_is_markup_that_is_not_ours(hostile):
    found, path = hostile
    outline = Outline()
    outline.feed(path.read_text())
    assert outline.tags.count("script") == 3 and "img" not in outline.tags and "b" in outline.tags
    assert outline.addresses == ["data:,"]
    assert found.agents[0] in outline.cells and HOSTILE in found.base
    assert found.agents[1] in outline.cells
    assert f"{float(found.total.agent(1).density):.2%}" in outline.cells
    assert [file.name for file in path.parent.glob("*.partial")] == []


@needs_plotly
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome to look at the page with")
def test_a_browser_draws_the_heat_maps_without_network_or_complaint(hostile, tmp_path):
    found, path = hostile
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
         "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>What the agents changed</title>" in done.stdout  # nothing of the checkpoint's ran
    drawn = re.search(r'data-drawn="(\d+)"', done.stdout)
    assert drawn is not None and int(drawn.group(1)) == 7  # three agents, three pairs, the matrix of pairs
    figures = done.stdout.split('class="figure')[1:]
    assert len(figures) == 7
    density = found.cells.agent(1).density
    cell = found.grid[2][0][found.grid[1].index("q_proj")]
    for figure in figures:
        assert re.search(r'<image[^>]+href="data:image/png;base64,\w{40}', figure)  # the cells
        assert 'class="cbtitle' in figure or "colorbar" in figure
    assert "q_proj" in figures[1] and f">{100 * density[cell]:.0f}<" in figures[1]
    assert found.agents[1] in done.stdout and ">&lt;b&gt;&amp;amp;<" in figures[0]
