"""Control groups with a memory limit: the page cache of reading and writing counts there, too."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.reliability.cgroup import NoGroup, memory_group
from bench.sample.generate import Shape, make_agent, make_base
from tests.faults.conftest import MIB, SLOWLY, check_nothing_final, check_resumed, has_begun, start, wait_for

BUDGET = 192 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Three inputs of 113 MB: with the output far more than budget and limit together."""
    folder = tmp_path_factory.mktemp("large")
    shape = Shape(layers=1, hidden=512, intermediate=1024, heads=8, kv_heads=8, vocab=107_000, tied=True)
    base = make_base(folder / "base", shape)
    return [base, *(make_agent(folder / f"agent-{index}", base, index=index) for index in range(2))]


@pytest.fixture
def limited():
    """``limited(bytes)``: a control group of that limit."""
    groups = []

    def make(limit):
        try:
            groups.append(memory_group(limit))
        except NoGroup as error:
            pytest.skip(str(error))
        return groups[-1]

    yield make
    for group in groups:
        group.remove()


def forget(folder: Path):
    """Put the files out of the page cache: whoever reads them next is charged for them."""
    for file in folder.rglob("*.safetensors"):
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_budget_and_64_megabytes_are_enough_for_the_page_cache_as_well(large, tmp_path, limited, io):
    group = limited(BUDGET + 64 * MIB)
    forget(large[0].parent)
    options = ["-m", "ram", "--max-ram", str(BUDGET), "--io", io, "--json", "--quiet"]
    child = start(*large, "-o", tmp_path / "out", *options, preexec_fn=group.enter)
    out, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert json.loads(out)["memory"]["peak"] <= BUDGET
    assert group.peak() > BUDGET + 60 * MIB, "the limit was never felt, so nothing was shown"
    assert group.killed() == 0


def test_a_kill_for_memory_leaves_nothing_under_the_final_name(large, tmp_path, limited):
    group = limited(48 * MIB)  # less than the process itself
    child = start(*large, "-o", tmp_path / "out", "-m", "ram", "--max-ram", str(BUDGET), preexec_fn=group.enter)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert group.killed() > 0
    check_nothing_final(tmp_path / "out")


def test_a_kill_in_the_middle_leaves_nothing_under_the_final_name(large, tmp_path, limited):
    """A neighbour in the same group takes all memory while weights are merged."""
    group = limited(BUDGET + 64 * MIB)
    options = [*SLOWLY, "--max-ram", str(BUDGET)]
    child = start(*large, "-o", tmp_path / "out", *options, preexec_fn=group.enter)
    wait_for(lambda: has_begun(tmp_path / "out"))
    os.kill(child.pid, signal.SIGSTOP)
    Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000")  # when one of the two is killed, it is this one
    neighbour = f"memory = b'x' * {BUDGET}"
    subprocess.run([sys.executable, "-S", "-c", neighbour], preexec_fn=group.enter, timeout=30)
    os.kill(child.pid, signal.SIGCONT)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    check_nothing_final(tmp_path / "out")
    check_resumed(tmp_path, large, *SLOWLY)
