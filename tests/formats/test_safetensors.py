import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from streammerge.formats import open_source
from streammerge.formats.contract import OutputTensor
from streammerge.formats.errors import FormatError, OutputError
from streammerge.formats.safetensors import INDEX, MAX_HEADER, SafetensorsSink, index_json, layout, read_header
from tests.conftest import save_floats, save_tensors


def raw_file(path, header, data=b"", length=None):
    """A file whose header says whatever a test wants."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start=0, stop=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"", b"", "too short|not valid JSON"),
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "must hold a JSON object, found list"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "'a' stands twice"),
        ({"a": 3}, b"", "'a': its entry is not an object"),
        ({"a": entry(dtype="F99")}, bytes(8), "dtype 'F99' is not known"),
        ({"a": entry(shape=(-2,))}, bytes(8), "not a list of sizes"),
        ({"a": {**entry(), "shape": [True, 2]}}, bytes(8), "not a list of sizes"),
        ({"a": {**entry(), "shape": "2"}}, bytes(8), "not a list of sizes"),
        ({"a": {**entry(), "data_offsets": [0]}}, bytes(8), "are not two positions"),
        ({"a": entry(0, 4)}, bytes(4), r"has 4 bytes, but F32 \[2\] needs 8"),
        ({"a": entry(8, 0)}, bytes(8), "has -8 bytes"),
        ({"a": entry(shape=(2**40, 2**40))}, bytes(8), "more than any file can hold"),
        ({"a": entry(), "b": entry(4, 12)}, bytes(12), "'b' .* overlaps"),
        ({"a": entry(), "b": entry(12, 20)}, bytes(20), "'b' .* leaves a hole"),
        ({"a": entry()}, bytes(4), "is truncated: .* found, .* wanted"),
        ({"a": entry()}, bytes(9), "bytes after its last tensor"),
        ({"a\0b": entry()}, bytes(8), "not a usable name"),
    ],
)
def test_a_wrong_header_is_refused_by_file_and_tensor(tmp_path, header, data, said):
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(FormatError, match=said) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAX_HEADER + 1, 4096])
def test_a_lying_header_length_is_refused_before_it_is_read(tmp_path, length):
    path = raw_file(tmp_path / "bad.safetensors", b"{}", length=length)
    with pytest.raises(FormatError, match="exceeds|does not fit"):
        read_header(path)


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, said in {
        "lfs.safetensors": "Git LFS pointer",
        "empty": "no .safetensors file",
        "pickle": "is a pickle.*never opened.*save_pretrained",
        "pickle/pytorch_model.bin": "is a pickle",
        "lora": "LoRA adapter",
        "absent": "no such file or folder",
        "pipe.safetensors": "not a file or folder",
        "folder.safetensors": "no .safetensors file",
        "model.gguf": "GGUF",
        "config.json": "is this a safetensors file",
    }.items():
        with pytest.raises(FormatError, match=said):
            open_source(tmp_path / name)


def test_a_name_like_on_the_hub_gets_the_command_that_downloads_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="hf download org/model"):
        open_source(type(tmp_path)("org/model"))


@pytest.fixture
def shards(tmp_path):
    save_floats(tmp_path / "s", {})
    os.unlink(tmp_path / "s" / "model.safetensors")
    for number, name in ((1, "x"), (2, "y")):
        save_tensors(tmp_path / "s" / f"model-{number}.safetensors", {name: ("F32", (2,), bytes(8))})
    return tmp_path / "s"


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_bare_folder_of_shards_and_an_indexed_one_are_the_same(shards):
    bare = open_source(shards)
    write_index(shards, {"x": "model-1.safetensors", "y": "model-2.safetensors"})
    indexed = open_source(shards)
    assert list(bare.tensors.values()) == list(indexed.tensors.values())
    assert open_source(shards / INDEX).tensors == indexed.tensors


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"x": "model-1.safetensors"}, None),
        ({"x": "model-1.safetensors", "y": "model-1.safetensors"}, "'y' should be in model-1"),
        ({"x": "model-1.safetensors", "z": "model-2.safetensors"}, "'z' should be in model-2.*does not list it"),
        ({"x": "model-1.safetensors", "y": "absent.safetensors"}, "absent.safetensors: cannot be read: No such file"),
        ({"x": "../model-1.safetensors"}, "leads out of the folder"),
        ({"x": "/etc/passwd"}, "leads out of the folder"),
        ({"x": 3}, "must be an object of file names"),
        ([], "must be an object of file names"),
    ],
)
def test_the_index_is_checked_against_the_headers(shards, weight_map, said):
    write_index(shards, weight_map)
    if said is None:  # a stray shard that the index does not name is not read
        assert set(open_source(shards).tensors) == {"x"}
        return
    with pytest.raises(FormatError, match=said):
        open_source(shards)


def test_a_tensor_that_the_index_forgot(shards):
    save_tensors(shards / "model-1.safetensors", {"x": ("F32", (2,), bytes(8)), "w": ("F32", (2,), bytes(8))})
    write_index(shards, {"x": "model-1.safetensors", "y": "model-2.safetensors"})
    with pytest.raises(FormatError, match="'w' is not listed"):
        open_source(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    save_tensors(shards / "model-3.safetensors", {"x": ("F32", (2,), bytes(8))})
    with pytest.raises(FormatError, match="'x' is in both model-1.safetensors and model-3.safetensors"):
        open_source(shards)


def test_the_layout_is_what_the_reference_library_reads(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.standard_normal((3, 5)).astype("f2"),
        "double": rng.standard_normal(7),
        'größe/"quoted"': rng.standard_normal((2, 2)).astype("f4"),
        "scalar": np.float32(3).reshape(()),
        "empty": np.zeros((0, 4), "f4"),
        "flag": np.array([True, False, True]),
    }
    kinds = {"float16": "F16", "float64": "F64", "float32": "F32", "bool": "BOOL"}
    tensors = [OutputTensor(name, kinds[a.dtype.name], a.shape) for name, a in arrays.items()]
    files = layout(tensors, None)
    sink = SafetensorsSink(tmp_path, files)
    for name, a in arrays.items():  # every second byte first: any order will do
        raw = np.frombuffer(a.tobytes(), np.uint8)
        for start in [*range(1, len(raw), 2), *range(0, len(raw), 2)]:
            sink.write(name, start, raw[start : start + 1])
    sink.sync()
    sink.close()
    loaded = load_file(tmp_path / "model.safetensors")
    assert {n: a.tobytes() for n, a in loaded.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert all(loaded[n].shape == a.shape for n, a in arrays.items())
    info = {i.name: i for i in read_header(tmp_path / "model.safetensors")}
    assert all(info[n].offset % a.dtype.itemsize == 0 for n, a in arrays.items())


def test_shards_are_closed_before_the_tensor_that_would_overflow_them():
    tensors = [OutputTensor(f"t{i}", "F32", (10,)) for i in range(5)] + [OutputTensor("big", "F32", (100,))]
    files = layout(tensors, 100)
    assert [sorted(f.offsets) for f in files] == [["t0", "t1"], ["t2", "t3"], ["t4"], ["big"]]
    assert [f.name for f in files] == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads(index_json(files))
    assert index["metadata"]["total_size"] == 600
    assert index["weight_map"]["big"] == "model-00004-of-00004.safetensors"
    assert len(layout(tensors, None)) == 1


def test_a_full_disk_shows_before_the_first_byte(tmp_path):
    with pytest.raises(OutputError, match="no space|cannot be written"):
        SafetensorsSink(tmp_path, layout([OutputTensor("t", "F32", (2**44,))], None))
