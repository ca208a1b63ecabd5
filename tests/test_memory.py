"""The promise: the peak that the operating system measures stays at or under the budget, and under the projection."""

import json
import os
import subprocess
import sys
from itertools import product
from string import ascii_lowercase

import numpy as np
import pytest

from bench.sample.generate import SHAPES, Shape, make_agent, make_base
from tests.conftest import save_tensors
from tests.gguf.checkpoints import tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4 to ask the operating system")


# A process starts its life with the memory of the one that forked it, and the system counts that peak, too:
# so the merge is started by a small interpreter, not by the test process. It prints the peak after the report.
_MEASURE = """
import os, sys
child = os.posix_spawn(sys.executable, [sys.executable, "-m", "streammerge", "merge", *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def merge_in_child(*arguments):
    """Run the command line; returns its JSON report and the peak resident memory that the system counted."""
    command = [sys.executable, "-S", "-c", _MEASURE, *map(str, arguments), "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report, _, peak = done.stdout.rstrip().rpartition("\n")
    return json.loads(report), int(peak)


def check_promise(report, peak):
    memory = report["memory"]
    assert peak <= memory["allowed"]
    assert peak <= memory["projected"]
    assert memory["reserved"] <= memory["peak"] <= peak + (1 << 20)  # the system counts the two a little differently


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Few tensors, one of them far larger than the budget leaves room for: 64 M weights, 128 MB, three agents."""
    folder = tmp_path_factory.mktemp("wide")
    shape = Shape(layers=1, hidden=512, intermediate=1024, heads=8, kv_heads=8, vocab=125_000, tied=True)
    base = make_base(folder / "base", shape)
    for index in range(3):
        make_agent(folder / f"agent-{index}", base, index=index)
    return folder


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize(
    "method",
    [["ram"], ["ram+"], ["ties", "-p", "density=0.2"], ["dare_linear", "-p", "density=0.5"]],
    ids=lambda method: method[0],
)
def test_peak_is_within_256_megabytes(wide, tmp_path, method, io):
    models = [wide / "base", *(wide / f"agent-{i}" for i in range(3))]
    report, peak = merge_in_child(*models, "-o", tmp_path / "o", "--max-ram", "256M", "--io", io, "-m", *method)
    check_promise(report, peak)
    assert peak > report["memory"]["reserved"]


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F32"])
def test_gguf_is_within_its_budget(wide, tmp_path, kind, io):
    """The metadata of a tokenizer is in what is reserved; a tensor of 64 M weights is never whole in memory."""
    models = [with_tokenizer(wide / "base"), *(wide / f"agent-{i}" for i in range(3))]
    output = tmp_path / "o.gguf"
    options = ["--quantize", kind, "--pre-tokenizer", "llama-bpe", "--io", io]
    report, peak = merge_in_child(*models, "-o", output, "--max-ram", "320M", *options)
    check_promise(report, peak)
    least = str(report["memory"]["least"])
    report, peak = merge_in_child(*models, "-o", tmp_path / "least.gguf", "--max-ram", least, *options)
    check_promise(report, peak)
    ends = [path.read_bytes()[-10_000_000:] for path in (output, tmp_path / "least.gguf")]
    assert ends[0] == ends[1]


def test_a_vocabulary_as_large_as_llama_3s_fits_as_well(tmp_path):
    """128,000 tokens and twice as many merges: the metadata takes more than the merge."""
    shape = Shape(layers=1, hidden=256, intermediate=256, heads=8, kv_heads=8, vocab=128_256, tied=True)
    base = make_base(tmp_path / "base", shape)
    agents = [make_agent(tmp_path / f"a{i}", base, index=i) for i in range(3)]
    (base / "tokenizer.json").write_text(json.dumps(large_tokenizer()))
    options = ["--quantize", "Q4_K_M", "--pre-tokenizer", "llama-bpe"]
    report, peak = merge_in_child(base, *agents, "-o", tmp_path / "o.gguf", "--max-ram", "400M", *options)
    check_promise(report, peak)


def test_vocabularies_as_large_as_llama_3s_are_compared_outside_the_process(tmp_path):
    """Three tokenizers of 128,000 tokens would take more than there is. One agent has more rows, one has fewer."""
    content = large_tokenizer()
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": 128_000 + n, "content": f"<{n}>"} for n in range(9)
    ]
    for name, rows, own in (("base", 128_000, large_tokenizer()), ("a", 128_064, content), ("b", 127_990, None)):
        shape = Shape(layers=1, hidden=256, intermediate=256, heads=8, kv_heads=8, vocab=rows, tied=True)
        make_base(tmp_path / name, shape)
        if own is None:
            own = large_tokenizer()
            for text in [text for text, number in own["model"]["vocab"].items() if number >= rows]:
                del own["model"]["vocab"][text]
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(own))
    models = [tmp_path / name for name in ("base", "a", "b")]
    report, _ = merge_in_child(*models, "-o", tmp_path / "o", "--max-ram", "1G", "--io", "mmap")
    least = report["memory"]["least"]
    report, _ = merge_in_child(*models, "-o", tmp_path / "p", "--max-ram", str(least))
    memory = report["memory"]  # the system's figure would be that of the process that compares
    assert memory["peak"] <= memory["projected"] <= memory["allowed"] < 200 << 20
    assert (tmp_path / "o/model.safetensors").read_bytes() == (tmp_path / "p/model.safetensors").read_bytes()


def large_tokenizer():
    """A byte-level BPE tokenizer.json of 128,000 tokens and more merges than that."""
    content = tokenizer(("<s>", "</s>"))
    vocab, merges = content["model"]["vocab"], []
    for word in map("".join, product(ascii_lowercase, repeat=4)):
        for part in (word[:2], word[:3], word):
            if len(vocab) < 128_000 and part not in vocab:
                vocab[part] = len(vocab)
                merges += [[part[:-1], part[-1]], [part[0], part[1:]]]
    content["model"]["merges"] = [pair for pair in merges if set(pair) <= vocab.keys()]
    assert len(vocab) == 128_000 and len(content["model"]["merges"]) > 150_000
    return content


def with_tokenizer(base):
    (base / "tokenizer.json").write_text(json.dumps(tokenizer(("<s>", "</s>"))))
    return base


def test_the_least_budget_does(wide, tmp_path):
    models = [wide / "base", *(wide / f"agent-{i}" for i in range(3))]
    report, _ = merge_in_child(*models, "-o", tmp_path / "o", "--max-ram", "1G")
    least = report["memory"]["least"]
    report, peak = merge_in_child(*models, "-o", tmp_path / "least", "--max-ram", str(least))
    check_promise(report, peak)
    assert (tmp_path / "o/model.safetensors").read_bytes() == (tmp_path / "least/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["ram", "ram+"])
def test_twelve_thousand_tensors_fit_as_well(tmp_path, method):
    """Each has its entry in ledger and manifest, also where the budget is the least that will do."""
    names = [f"model.layers.{n // 64}.mlp.experts.{n % 64}.down_proj.weight" for n in range(12_000)]
    for number, model in enumerate(("base", "agent")):
        raw = (np.arange(16, dtype=np.uint16) + number).tobytes()
        save_tensors(tmp_path / model / "model.safetensors", dict.fromkeys(names, ("BF16", (4, 4), raw)))
    command = [tmp_path / "base", tmp_path / "agent", "-o", tmp_path / "out", "-m", method, "--threads", "1"]
    plan = [sys.executable, "-m", "streammerge", "plan", *map(str, command), "--json"]
    least = json.loads(subprocess.run(plan, stdout=subprocess.PIPE, check=True).stdout)["memory"]["least"]
    check_promise(*merge_in_child(*command, "--max-ram", str(least + (8 << 20))))  # merging loads a little more


def test_sixteen_agents_fit_as_well(tmp_path):
    shape = Shape(layers=2, hidden=256, intermediate=512, heads=8, kv_heads=8, vocab=16_000, tied=True)
    base = make_base(tmp_path / "base", shape)
    agents = [make_agent(tmp_path / f"a{index}", base, index=index) for index in range(16)]
    report, peak = merge_in_child(base, *agents, "-o", tmp_path / "o", "--max-ram", "256M")
    check_promise(report, peak)
    assert len(report["agents"]) == 16


def test_a_model_a_hundred_times_the_size_needs_no_more(wide, tiny, tmp_path):
    peaks = []
    for folder in (tiny, wide):
        models = [folder / "base", *(folder / f"agent-{i}" for i in range(3))]
        _, peak = merge_in_child(*models, "-o", tmp_path / folder.name, "--max-ram", "200M", "--threads", "1")
        peaks.append(peak)
    assert abs(peaks[1] - peaks[0]) < 48 << 20  # one worker's buffers, which a tiny model does not fill


def test_float64_inputs_count_eight_bytes(tmp_path):
    from tests.conftest import save_floats

    rng = np.random.default_rng(0)
    weights = rng.standard_normal(4_000_000)
    save_floats(tmp_path / "base", {"w": weights})
    save_floats(tmp_path / "agent", {"w": weights + 1e-3})
    report, peak = merge_in_child(tmp_path / "base", tmp_path / "agent", "-o", tmp_path / "o", "--max-ram", "192M")
    check_promise(report, peak)


def test_shapes_of_the_sample_are_known():
    assert {"tiny", "135m", "1.24b", "7b", "70b"} <= set(SHAPES)
