import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import streammerge
from streammerge.cli import cli
from streammerge.methods import METHODS


def run(*arguments, env=None, cwd=None):
    """The real command line in a process of its own."""
    command = [sys.executable, "-m", "streammerge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, cwd=cwd)


def models(folder):
    return folder / "base", *(folder / f"agent-{i}" for i in range(3))


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['streammerge', '--help']\nfrom streammerge.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'numba', 'torch', 'gguf', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Merge N checkpoints" in done.stdout
    assert done.stderr.strip() == "[]"


def test_merge_is_what_is_meant_without_a_command(tiny, tmp_path):
    done = run("--max-ram", "8G", *models(tiny), "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").exists()
    assert "peak" in done.stdout and "agent-1: changed" in done.stdout
    assert "merging: " in done.stderr and "\r" not in done.stderr
    assert run(*models(tiny), "-o", tmp_path / "quiet", "--quiet").stdout == ""


def test_json_is_json_and_nothing_else(tiny, tmp_path):
    done = run("merge", *models(tiny), "-o", tmp_path / "out", "--json", "-m", "ram")
    report = json.loads(done.stdout)
    memory = report["memory"]
    assert memory["reserved"] < memory["peak"] <= memory["projected"] <= memory["allowed"]
    assert len(report["agents"]) == 3 and all(agent["changed"] > 0 for agent in report["agents"])
    plan = json.loads(run("plan", *models(tiny), "--json").stdout)
    assert plan["bytes_to_write"] == (tmp_path / "out/model.safetensors").stat().st_size


def test_a_plan_reads_headers_and_says_what_will_be(tiny):
    done = run("plan", *models(tiny), "--exclude", "norm", "-p", "r=0.25")
    assert done.returncode == 0
    for said in ("r=0.25", "projected", "reserved", "at least", "copy", "excluded by --exclude norm", "weights"):
        assert said in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["BASE", "nowhere", "-o", "OUT"], 1, "Error: .*nowhere: no such file or folder"),
        (["BASE", "A0"], 2, "Error: no output given; add -o OUT"),
        (["BASE", "-o", "OUT"], 2, "Error: no agents given"),
        (["BASE", "A0", "-o", "OUT", "-m", "rum"], 2, "Error: unknown method 'rum'"),
        (["BASE", "A0", "-o", "OUT", "-p", "r"], 2, "Error: -p r: write NAME=VALUE"),
        (["BASE", "A0", "-o", "OUT", "--max-ram", "1M"], 3, "Error: --max-ram 1 MiB is too small.*try --max-ram"),
        (["BASE", "A0", "-o", "OUT", "--io", "dma"], 2, "Invalid value for '--io'"),
        (["BASE", "A0", "-o", "BASE"], 1, "Error: .*: is the input"),
        (["BASE", "A0", "A0", "-o", "OUT"], 1, "Error: agent 2, .* is the same model as agent 1"),
        (["plan"], 2, "Missing argument"),
        (["methods", "rum"], 2, "Error: unknown method 'rum'; known are"),
        (["absent.yml", "-o", "OUT"], 2, "Error: absent.yml: cannot be read: No such file"),
        (["BASE", "A0", "-o", "OUT", "--max-ram", "0"], 3, "Error: --max-ram 0 B is too small"),
        (["BASE", "A0", "-o", ""], 2, "Error: the output's name is empty"),
        (["absent.yml", "A0", "-o", "OUT"], 2, "Error: absent.yml: a recipe names its models itself"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(tiny, tmp_path, arguments, code, said):
    places = {"BASE": tiny / "base", "A0": tiny / "agent-0", "OUT": tmp_path / "out"}
    done = run(*(places.get(argument, argument) for argument in arguments), cwd=tmp_path)
    assert done.returncode == code
    import re

    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_every_option_can_come_from_the_environment(tiny, tmp_path):
    env = {"STREAMMERGE_MAX_RAM": "1M"}
    assert run(*models(tiny), "-o", tmp_path / "out", env=env).returncode == 3
    env = {"STREAMMERGE_METHOD": "linear", "STREAMMERGE_OUTPUT": str(tmp_path / "out")}
    assert "(linear)" in run(*models(tiny), env=env).stdout


def test_a_recipe_file_is_the_same_as_options(tiny, tmp_path):
    (tmp_path / "recipe.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {tiny}/base\nparameters: {{lambda: 0.5}}\n"
        f"models:\n  - {{model: {tiny}/agent-0, parameters: {{weight: 2}}}}\n"
        f"  - {{model: {tiny}/agent-1, parameters: {{weight: 0.5}}}}\n"
    )
    assert run("merge", tmp_path / "recipe.yml", "-o", tmp_path / "a").returncode == 0
    base, one, two, _ = models(tiny)
    done = run(
        "merge", base, one, two, "-o", tmp_path / "b", "-m", "task_arithmetic", "-p", "lambda=0.5", "-p", "weight=2,0.5"
    )
    assert done.returncode == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_methods_are_listed_and_explained():
    listed = CliRunner().invoke(cli, ["methods"]).output
    assert [line.split()[0] for line in listed.splitlines()] == list(METHODS)
    for name, method in METHODS.items():
        text = CliRunner().invoke(cli, ["methods", name]).output
        assert f"paper: {method.paper}" in text
        for parameter in method.parameters():
            assert f"  {parameter.name}={parameter.default}: {parameter.help}" in text
    assert "preset=authors: r=0.05, alpha=1.0" in CliRunner().invoke(cli, ["methods", "ramplus"]).output


def test_the_first_run_says_that_it_compiles_and_the_second_need_not(tiny, tmp_path):
    env = {"STREAMMERGE_CACHE_DIR": str(tmp_path / "cache")}
    first = run(*models(tiny), "-o", tmp_path / "a", "--json", env=env)
    assert "compiling the kernels" in first.stderr and first.returncode == 0
    second = run(*models(tiny), "-o", tmp_path / "b", "--json", env=env)
    assert "compiling" not in second.stderr and second.returncode == 0
    reserved = [json.loads(done.stdout)["memory"]["reserved"] for done in (first, second)]
    assert reserved[0] - reserved[1] < 16 << 20  # it is another process that compiles


def test_the_public_names_are_what_is_promised():
    assert streammerge.__all__ == [
        "Inspection",
        "Plan",
        "Recipe",
        "Report",
        "StreammergeError",
        "__version__",
        "inspect",
        "merge",
        "plan",
        "verify",
    ]
    assert all(hasattr(streammerge, name) for name in streammerge.__all__)
    assert all(callable(f) for f in (streammerge.plan, streammerge.merge, streammerge.inspect))
    with pytest.raises(AttributeError):
        _ = streammerge.absent
    assert CliRunner().invoke(cli, ["--version"]).output.strip() == streammerge.__version__


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_live_bar(tiny, tmp_path):
    import pty

    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "streammerge", *map(str, models(tiny)), "-o", str(tmp_path / "out")],
        stderr=slave, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    child.communicate()
    assert child.returncode == 0
    assert b"memory" in shown and b"ram+: base and 3 agents" in shown
