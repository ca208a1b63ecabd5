"""Runs that are stopped, and go on: the same bytes, nothing lost, nothing taken for what it is not."""

import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

import streammerge
import streammerge.statistics
from bench.sample.generate import Shape, make_agent, make_base
from streammerge import budget, journal
from streammerge.demand import ENTRY
from streammerge.errors import Interrupted, OutputError, UnfinishedError
from streammerge.events import Advanced, Finishing, Notice, PassStarted
from streammerge.ledger import Ledger, Outcome
from streammerge.varying import ByTensor, Rule
from tests.gguf.merging import PRE, make_models

SHAPE = Shape(layers=6, hidden=256, intermediate=1024, heads=4, kv_heads=4, vocab=4096, tied=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Base and two agents, a few chunks of work, written long ago: statistics of new files are not kept."""
    folder = tmp_path_factory.mktemp("resume")
    base = make_base(folder / "base", SHAPE)
    agents = [make_agent(folder / f"agent-{i}", base, index=i) for i in range(2)]
    for path in (base, *agents):
        os.utime(path / "model.safetensors", ns=(10**18, 10**18))
    return base, agents


def digests(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    shown = [file for file in files if file.is_file() and file.name not in (".journal", ".lock")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shown}


def forget_statistics():
    for file in streammerge.statistics.FOLDER.iterdir():
        file.unlink()


class StopAfter:
    """A listener that stops a run after so many chunks of its last pass, and remembers what was told."""

    def __init__(self, chunks, title="merging"):
        self.stop = threading.Event()
        self.notices, self.read, self._left, self._title, self._now = [], 0, chunks, title, ""

    def __call__(self, event):
        if isinstance(event, Notice):
            self.notices.append(event.text)
        elif isinstance(event, PassStarted):
            self._now = event.title
        elif isinstance(event, Advanced):
            self.read += event.bytes_read
            if self._now == self._title:
                self._left -= 1
                if self._left <= 0:
                    self.stop.set()
                    time.sleep(0.3)  # the main thread looks every 0.1 s


def stopped(models, out, chunks, title="merging", **options):
    listener = StopAfter(chunks, title)
    with pytest.raises(Interrupted) as caught:
        streammerge.merge(*models, out, listener=listener, stop=listener.stop, **options)
    return caught.value


def resumed(models, out, **options):
    listener = StopAfter(10**9)
    report = streammerge.merge(*models, out, listener=listener, resume=True, **options)
    return report, listener


@pytest.mark.parametrize("method", ["ram", "ram+", "ties", "dare_linear", "ramplus_tl"])
def test_a_resumed_run_gives_the_same_bytes_and_numbers(models, tmp_path, method):
    options = {"method": method, "parameters": {"density": 0.3} if method in ("ties", "dare_linear") else {}}
    whole = streammerge.merge(*models, tmp_path / "whole" / "out", **options)
    error = stopped(models, tmp_path / "out", 20, **options)
    assert re.fullmatch(r".*out\.partial: keeps \d+% of the output; to go on with it", error.__notes__[0])
    report, listener = resumed(models, tmp_path / "out", **options)
    assert any("% of the output is there; going on" in text for text in listener.notices)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")
    assert report.agents == whole.agents
    assert listener.read < whole.outcome.bytes_read


@pytest.mark.parametrize("output", ["out.gguf", "out.safetensors"])
def test_single_files_are_resumed(models, tmp_path, output):
    options = {"method": "ram"}
    if output == "out.gguf":
        models = make_models(tmp_path / "in", Shape(3, 256, 1024, 4, 4, 2048, True))
        options |= {"quantize": "Q4_K_M", **PRE}
    (tmp_path / "whole").mkdir()
    streammerge.merge(*models, tmp_path / "whole" / output, **options)
    stopped(models, tmp_path / output, 10, **options)
    resumed(models, tmp_path / output, **options)
    names = [output, f"{output}.manifest.json"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == names
    assert all((tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_measure_pass_is_resumed_too(models, tmp_path):
    whole = streammerge.merge(*models, tmp_path / "whole" / "out")
    forget_statistics()
    stopped(models, tmp_path / "out", 20, "counting changed weights")
    report, listener = resumed(models, tmp_path / "out")
    assert report.agents == whole.agents and digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")
    assert whole.outcome.bytes_read / 2 < listener.read < whole.outcome.bytes_read


@pytest.mark.parametrize("blocks", [1, 3, 16])
def test_another_budget_may_go_on(models, tmp_path, monkeypatch, blocks):
    """Chunks of other sizes: a tensor in flight is made anew, a finished one stays."""
    whole = streammerge.merge(*models, tmp_path / "whole" / "out", method="ram")
    monkeypatch.setattr(budget, "_LARGEST_CHUNK", 2 * 65_536)
    stopped(models, tmp_path / "out", 40, method="ram")
    monkeypatch.setattr(budget, "_LARGEST_CHUNK", blocks * 65_536)
    report, listener = resumed(models, tmp_path / "out", method="ram", threads=1)
    assert report.agents == whole.agents and digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")
    assert listener.read < 0.8 * whole.outcome.bytes_read


def test_an_unfinished_run_is_reported_and_not_lost(models, tmp_path):
    stopped(models, tmp_path / "out", 20)
    kept = digests(tmp_path / "out.partial")
    with pytest.raises(UnfinishedError, match=r"\.partial: holds an unfinished run of this merge; to start anew: -"):
        streammerge.merge(*models, tmp_path / "out")
    with pytest.raises(UnfinishedError, match=r"of another merge \(recipe parameters r is 0\.2, was 0\.1\); to"):
        streammerge.merge(*models, tmp_path / "out", parameters={"r": 0.2})
    with pytest.raises(UnfinishedError, match=r"cannot be resumed: recipe dtype is float32, was None; to start"):
        streammerge.merge(*models, tmp_path / "out", dtype="f16", resume=True)
    assert digests(tmp_path / "out.partial") == kept
    streammerge.merge(*models, tmp_path / "out", overwrite=True, method="ram")
    streammerge.merge(*models, tmp_path / "whole" / "out", method="ram")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")


def test_changed_inputs_are_not_gone_on_with(models, tmp_path):
    agents = models[1]
    stopped(models, tmp_path / "out", 20)
    weights = agents[1] / "model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        with pytest.raises(UnfinishedError, match=r"be resumed: inputs agent-1 files model.safetensors modified since"):
            streammerge.merge(*models, tmp_path / "out", resume=True)
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    resumed(models, tmp_path / "out")


def test_an_input_that_changes_meanwhile_is_an_error_at_the_end(models, tmp_path):
    import shutil

    shutil.copytree(models[1][0], tmp_path / "agent")

    def touch(event):
        if isinstance(event, PassStarted):
            os.utime(tmp_path / "agent/model.safetensors")

    with pytest.raises(streammerge.StreammergeError, match=r"agent/model.safetensors: changed while it was read"):
        streammerge.merge(models[0], [tmp_path / "agent"], tmp_path / "out", listener=touch)
    assert sorted(os.listdir(tmp_path)) == ["agent"]


def test_nothing_to_resume_is_a_beginning(models, tmp_path):
    _, listener = resumed(models, tmp_path / "out")
    assert any("holds nothing to resume; starting from the beginning" in text for text in listener.notices)
    with pytest.raises(OutputError, match="exists already"):
        streammerge.merge(*models, tmp_path / "out", resume=True)


def test_a_partial_output_that_lost_a_file_is_refused(models, tmp_path):
    stopped(models, tmp_path / "out", 20)
    os.truncate(tmp_path / "out.partial/model.safetensors", 100)
    with pytest.raises(OutputError, match="model.safetensors: .*100 bytes.* start anew with --overwrite"):
        streammerge.merge(*models, tmp_path / "out", resume=True)
    (tmp_path / "out.partial/model.safetensors").unlink()
    with pytest.raises(OutputError, match="model.safetensors: is missing.* start anew with --overwrite"):
        streammerge.merge(*models, tmp_path / "out", resume=True)
    assert (tmp_path / "out.partial/.journal").exists()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-3], lambda raw: raw[:-30] + b"x" * 30, lambda raw: raw + b"\0" * 99]
)
def test_a_torn_journal_is_believed_up_to_the_tear(models, tmp_path, damage):
    streammerge.merge(*models, tmp_path / "whole" / "out", method="ram")
    stopped(models, tmp_path / "out", 20, method="ram")
    path = tmp_path / "out.partial/.journal"
    path.write_bytes(damage(path.read_bytes()))
    resumed(models, tmp_path / "out", method="ram")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")


def test_lines_are_written_after_the_data_is_durable(tmp_path):
    order = []

    def sync():
        order.append(("sync", (tmp_path / ".journal").read_bytes().count(b"\n")))

    with journal.Journal(tmp_path, [{"run": 1}], sync) as written:
        written.append({"job": 1})
        written.append({"job": 2})
        assert not order and len(list(journal.read_journal(tmp_path))) == 1
        written.flush()
        assert order == [("sync", 1)] and [r.get("job") for r in journal.read_journal(tmp_path)] == [None, 1, 2]
        written.append({"job": 3})
    assert order == [("sync", 1), ("sync", 3)] and list(journal.read_journal(tmp_path))[-1] == {"job": 3}


def test_counts_are_used_again_with_another_r(models, tmp_path):
    first = streammerge.merge(*models, tmp_path / "a" / "out", parameters={"r": 0.1})
    listener = StopAfter(10**9)
    second = streammerge.merge(*models, tmp_path / "b" / "out", parameters={"r": 0.2}, listener=listener)
    assert any("measured before, with the same inputs: not measured again" in text for text in listener.notices)
    assert second.outcome.bytes_read == first.outcome.bytes_read / 2
    fresh = streammerge.merge(*models, tmp_path / "c" / "out", parameters={"r": 0.2, "epsilon": 2e-5})
    assert fresh.outcome.bytes_read == first.outcome.bytes_read
    forget_statistics()
    streammerge.merge(*models, tmp_path / "d" / "out", parameters={"r": 0.2})
    assert digests(tmp_path / "b" / "out") == digests(tmp_path / "d" / "out")


def test_counts_of_inputs_that_were_just_written_are_not_kept(tmp_path, monkeypatch):
    """However long the merge took: written again in the same tick of the clock, they would look the same."""
    monkeypatch.setattr(streammerge.statistics, "_SETTLED", 0)
    base = make_base(tmp_path / "base", dataclasses.replace(SHAPE, layers=1))
    agent = make_agent(tmp_path / "agent", base, index=0)
    soon = time.time_ns() + 10**9
    os.utime(agent / "model.safetensors", ns=(soon, soon))

    def wait(event):
        if isinstance(event, Finishing):
            time.sleep(max(soon - time.time_ns(), 0) / 1e9 + 0.01)

    streammerge.merge(base, [agent], tmp_path / "out", listener=wait)
    assert list(streammerge.statistics.FOLDER.iterdir()) == []


def test_parameters_that_vary_by_tensor_are_told_apart(models, tmp_path):
    """Both would give other bytes: counts of another epsilon, and chunks of another gradient."""

    def varying(last):
        return ByTensor((Rule((1e-5, last), "mlp"), Rule(1e-5)))

    first = streammerge.merge(*models, tmp_path / "a" / "out", parameters={"epsilon": varying(1e-3)})
    again = streammerge.merge(*models, tmp_path / "b" / "out", parameters={"epsilon": varying(1e-3), "r": 1})
    other = streammerge.merge(*models, tmp_path / "c" / "out", parameters={"epsilon": varying(1e-4)})
    assert again.outcome.bytes_read == first.outcome.bytes_read / 2
    assert other.outcome.bytes_read == first.outcome.bytes_read
    stopped(models, tmp_path / "out", 20, method="ram", parameters={"epsilon": varying(1e-3)})
    with pytest.raises(UnfinishedError, match="be resumed: recipe parameters epsilon"):
        streammerge.merge(*models, tmp_path / "out", resume=True, method="ram", parameters={"epsilon": varying(1e-4)})
    whole = streammerge.merge(*models, tmp_path / "d" / "out", method="ram", parameters={"epsilon": varying(1e-3)})
    report, _ = resumed(models, tmp_path / "out", method="ram", parameters={"epsilon": varying(1e-3)})
    assert digests(tmp_path / "out") == digests(tmp_path / "d" / "out") and report.agents == whole.agents


def test_settings_beside_the_weights_are_looked_at(tmp_path):
    """Whether a head is counted is said by config.json: shares of what was counted otherwise do not add up."""
    base = make_base(tmp_path / "base", dataclasses.replace(SHAPE, tied=False))
    models = base, [make_agent(tmp_path / f"agent-{i}", base, index=i) for i in range(2)]
    stopped(models, tmp_path / "out", 20, method="ram")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UnfinishedError, match="cannot be resumed: jobs is"):
        streammerge.merge(*models, tmp_path / "out", method="ram", resume=True)


def test_nan_is_not_gone_on_with_in_silence(tmp_path):
    base = make_base(tmp_path / "base", SHAPE)
    agent = make_agent(tmp_path / "agent", base, index=0)
    content = bytearray((agent / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start : start + 2] = b"\xc0\x7f"
    (agent / "model.safetensors").write_bytes(content)
    stopped((base, [agent]), tmp_path / "out", 20, method="ram", allow_non_finite=True)
    with pytest.raises(UnfinishedError, match="holds NaN or infinity; give --allow-non-finite as before"):
        streammerge.merge(base, [agent], tmp_path / "out", method="ram", resume=True)
    report, _ = resumed((base, [agent]), tmp_path / "out", method="ram", allow_non_finite=True)
    assert report.outcome.non_finite_inputs == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text(models, tmp_path):
    streammerge.merge(*models, tmp_path / "o\udcffut.safetensors", method="ram")
    assert streammerge.verify(tmp_path / "o\udcffut.safetensors").problems == ()


def test_many_lines_do_not_wait(tmp_path, monkeypatch):
    """They take memory; a slow disk makes the journal rest for a minute."""
    monkeypatch.setattr(journal, "_LEAST", 60.0)
    monkeypatch.setattr(journal, "_MOST_WAITING", 1000)
    synced = threading.Event()
    with journal.Journal(tmp_path, [{"run": 1}], synced.set) as written:
        for number in range(100):
            written.append({"job": number})
        assert synced.wait(30)
    assert [record.get("job") for record in journal.read_journal(tmp_path)] == [None, *range(100)]


def test_what_is_kept_of_a_tensor_is_small(models):
    """The budget counts ENTRY bytes for it, with as many agents as one likes."""
    base, agents = models
    plan = streammerge.plan(base, agents)
    plan = dataclasses.replace(plan, agents=plan.agents * 16)
    found = Outcome(np.full((32, 2), 10**9), bytes_read=1)
    tracemalloc.start()
    try:
        ledger = Ledger(plan)
        before = tracemalloc.get_traced_memory()[0]
        for number, job in enumerate(plan.jobs):
            ledger.add(
                number, 0, job.elements, bytes(16 * job.segments), dataclasses.replace(found, tally=found.tally + 1)
            )
        assert (tracemalloc.get_traced_memory()[0] - before) / len(plan.jobs) < ENTRY / 3
    finally:
        tracemalloc.stop()


# --- killed processes ------------------------------------------------------------------------------------------------

# The journal is written at every opportunity, and chunks take their time.
EAGER = """
import time, streammerge.journal as journal, streammerge.worker as worker
journal._LEAST, journal._REST = 0.01, 0
carry = worker.Worker.carry
worker.Worker.carry = lambda self, task: (time.sleep(0.01), carry(self, task))[1]
from streammerge.cli import main
main()
"""


def command(models, out, *more):
    base, agents = models
    run = [sys.executable, "-c", EAGER, "merge", base, *agents, "-o", out, "-m", "ram", "--threads", "2", *more]
    return list(map(str, run))


def lose_what_was_not_synced(partial):
    """What a power failure may do: everything that the journal does not vouch for is gone."""
    records = list(journal.read_journal(partial))
    if not records:
        return 0
    plan = json.loads((partial.parent / "plan.json").read_text())
    header = (partial / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(header[:8], "little")
    places = {name: entry["data_offsets"] for name, entry in json.loads(header[8:start]).items() if name[0] != "_"}
    kept = []
    for record in records[1:]:
        if "job" in record:
            begin, end = places[plan["tensors"][record["job"]]["name"]]
            first, count = record["segments"]
            size = 2 * 65_536
            kept.append((start + begin + first * size, start + min(begin + (first + count) * size, end)))
    lost = bytearray(b"\xa5" * len(header))
    lost[:start] = header[:start]
    for begin, end in kept:
        lost[begin:end] = header[begin:end]
    (partial / "model.safetensors").write_bytes(lost)
    return len(kept)


@pytest.mark.parametrize("power_loss", [False, True])
def test_killed_at_random_moments_and_resumed(models, tmp_path, power_loss):
    """kill -9, five times each: the checksums are those of an undisturbed run."""
    (tmp_path / "whole").mkdir()
    subprocess.run(command(models, tmp_path / "whole" / "out"), check=True, capture_output=True)
    plan = streammerge.plan(*models, tmp_path / "out", method="ram")
    (tmp_path / "plan.json").write_text(plan.to_json())
    rng, found = random.Random(power_loss), 0
    for number in range(5):
        out = tmp_path / f"out{number}" / "out"
        out.parent.mkdir()
        (out.parent / "plan.json").write_text(plan.to_json())
        child = subprocess.Popen(command(models, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        partial = out.with_name("out.partial")
        while not partial.exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.25)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if power_loss and partial.exists():
            found += lose_what_was_not_synced(partial)
        done = subprocess.run(command(models, out, "--resume"), capture_output=True, text=True)
        finished = "exists already" in done.stderr and not partial.exists()
        assert done.returncode == 0 or finished, done.stderr
        assert digests(out) == digests(tmp_path / "whole" / "out")
    assert found or not power_loss
