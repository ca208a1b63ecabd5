import ctypes
import os
import struct

import numpy as np
import pytest

from streammerge.formats.contract import OutputTensor
from streammerge.formats.errors import FormatError, OutputError
from streammerge.formats.gguf import (
    GGML_TYPES,
    GgufSink,
    GgufSource,
    KeyValue,
    key_value,
    layout,
    read_header,
    row_bytes,
    tensor_bytes,
)
from tests.gguf.models import Shape, write_gguf

PAIRS = [
    key_value("general.architecture", "str", "llama"),
    key_value("text", "str", "größe \udc80"),
    key_value("numbers.u8", "u8", 255),
    key_value("numbers.i8", "i8", -128),
    key_value("numbers.u16", "u16", 65535),
    key_value("numbers.i16", "i16", -1),
    key_value("numbers.u32", "u32", 2**32 - 1),
    key_value("numbers.i32", "i32", -(2**31)),
    key_value("numbers.u64", "u64", 2**64 - 1),
    key_value("numbers.i64", "i64", -(2**63)),
    key_value("numbers.f32", "f32", 0.5),
    key_value("numbers.f64", "f64", 0.1),
    key_value("flag", "bool", True),
    key_value("words", "[str]", ["a", "", "ö"]),
    key_value("ids", "[i32]", [1, -2, 3]),
    key_value("scores", "[f32]", [0.25, -1.0]),
    key_value("flags", "[bool]", [True, False]),
    key_value("none", "[str]", []),
]


def raw_gguf(path, tensors=b"", pairs=b"", data=b"", counts=None, version=3, magic=b"GGUF"):
    """A file whose header says whatever a test wants; ``tensors`` and ``pairs`` are lists of encoded entries."""
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def string(text):
    return struct.pack("<Q", len(text)) + text


def pair(key=b"k", kind=4, value=bytes(4)):
    return string(key) + struct.pack("<I", kind) + value


def tensor(name=b"t", sizes=(8,), kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("is not a GGUF file", {"magic": b"GGJT"}),
        ("Git LFS pointer", {"magic": b"version https"}),
        ("GGUF version 1 is not read", {"version": 1}),
        ("big-endian", {"version": 3 << 24}),
        ("truncated", {"counts": (1, 0)}),
        ("at most 150000", {"counts": (2**63, 0)}),
        ("at most 150000, 65536", {"counts": (0, 2**63)}),
        ("at most 65535 are read", {"pairs": [struct.pack("<Q", 2**63)]}),
        ("at most 2000000", {"pairs": [pair(kind=9, value=struct.pack("<IQ", 4, 2**61))]}),
        ("at most 2000000", {"pairs": [pair(kind=9, value=struct.pack("<IQ", 8, 2**61))]}),
        ("'k' has a value of type 13", {"pairs": [pair(kind=13)]}),
        ("'k' has a value of type 9", {"pairs": [pair(kind=9, value=struct.pack("<IQ", 9, 1))]}),
        ("'k' stands twice", {"pairs": [pair(), pair()]}),
        ("general.alignment is 24", {"pairs": [pair(b"general.alignment", value=struct.pack("<I", 24))]}),
        ("general.alignment is 0", {"pairs": [pair(b"general.alignment")]}),
        ("'' is empty or longer", {"tensors": [tensor(b"")], "data": bytes(32)}),
        ("is empty or longer than 63", {"tensors": [tensor(b"x" * 64)], "data": bytes(32)}),
        ("'t' has 5 dimensions", {"tensors": [tensor(sizes=(1, 1, 1, 1, 8))], "data": bytes(32)}),
        ("'t' has 0 dimensions", {"tensors": [tensor(sizes=())], "data": bytes(32)}),
        ("'t' is of type 99", {"tensors": [tensor(kind=99)], "data": bytes(32)}),
        ("'t': rows of 8 elements are not whole Q8_0", {"tensors": [tensor(kind=8)], "data": bytes(32)}),
        ("'t' is at byte 32 of the data, wanted 0", {"tensors": [tensor(offset=32)], "data": bytes(64)}),
        ("'u' is at byte 0 of the data, wanted 32", {"tensors": [tensor(), tensor(b"u")], "data": bytes(64)}),
        ("'t' stands twice", {"tensors": [tensor(), tensor(offset=32)], "data": bytes(64)}),
        ("is truncated", {"tensors": [tensor()], "data": bytes(16)}),
        ("is truncated", {"tensors": [tensor(sizes=(2**40, 2**40))], "data": bytes(32)}),
        ("bytes after its last tensor", {"tensors": [tensor()], "data": bytes(64)}),
    ],
)
def test_a_wrong_header_is_refused_by_file_and_tensor(tmp_path, said, parts):
    path = raw_gguf(tmp_path / "bad.gguf", **parts)
    with pytest.raises(FormatError, match=said) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_a_short_or_absent_file_is_refused(tmp_path):
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\3")
    for name, said in {
        "empty.gguf": "not a GGUF file",
        "short.gguf": "truncated",
        "absent.gguf": "no such file",
    }.items():
        with pytest.raises(FormatError, match=said):
            GgufSource(tmp_path / name)


def test_the_last_padding_may_miss(tmp_path):
    path = raw_gguf(tmp_path / "m.gguf", tensors=[tensor(sizes=(9,))], data=bytes(36))
    assert GgufSource(path).tensors["t"].nbytes == 36


def test_key_values_are_read_as_they_were_written(tmp_path):
    _, path = write_gguf(tmp_path, [], PAIRS)
    found = GgufSource(path).key_values
    assert list(found.values()) == PAIRS
    assert found["text"].value == "größe \udc80"
    assert found["words"].value == ["a", "", "ö"]
    assert found["ids"].value == [1, -2, 3]
    assert found["numbers.u64"].value == 2**64 - 1
    assert found["flag"].value is True


@pytest.mark.parametrize(("kind", "value"), [("u8", 256), ("u32", -1), ("str", 3), ("[str]", [1]), ("f32", "x")])
def test_a_value_that_is_not_of_its_kind_is_refused(kind, value):
    with pytest.raises(OutputError, match="metadata 'k': .* is no value of kind"):
        key_value("k", kind, value)


def test_the_reference_reader_reads_what_was_written(tmp_path):
    gguf = pytest.importorskip("gguf")
    tensors = [
        OutputTensor("a.weight", "F32", (3, 5)),
        OutputTensor("b.weight", "F16", (2, 3, 7)),
        OutputTensor("c.weight", "F32", (1, 4)),
        OutputTensor("d.weight", "F32", (4, 1)),
    ]
    arrays, path = write_gguf(tmp_path, tensors, [p for p in PAIRS if p.key not in ("text", "none")])
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(arrays)
    for found in reader.tensors:
        assert found.data.tobytes() == arrays[found.name].tobytes()
        assert found.data_offset % 32 == 0
    assert [list(map(int, t.shape)) for t in reader.tensors] == [[5, 3], [7, 3, 2], [4, 1], [1, 4]]
    for wanted in PAIRS:
        if wanted.key not in ("text", "none"):
            assert reader.fields[wanted.key].contents() == wanted.value
    source = GgufSource(path)
    assert {n: i.offset for n, i in source.tensors.items()} == {t.name: t.data_offset for t in reader.tensors}


def test_what_the_reference_writer_writes_is_written_alike_and_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_array("words", ["a", "ö"])
    writer.add_array("ids", [1, 2])
    writer.add_bool("flag", False)
    arrays = {"x": np.arange(40, dtype="f4").reshape(5, 8), "y": np.ones(3, "f2")}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "theirs.gguf")
    tensors = [OutputTensor(i.name, i.dtype, i.shape) for i in source.tensors.values()]
    files = layout(tensors, list(source.key_values.values()))
    sink = GgufSink(tmp_path, files)
    reader = source.reader("mmap")
    for info in source.tensors.values():
        raw = reader.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8))
        assert raw.tobytes() == arrays[info.name].tobytes()
        sink.write(info.name, 0, raw)
        reader.release(info, 0, info.nbytes)
    reader.close()
    sink.sync()
    sink.close()
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_sizes_of_blocks():
    assert row_bytes("Q4_K", 512) == 288
    assert tensor_bytes("Q8_0", (3, 4, 64)) == 12 * 68
    assert tensor_bytes("F32", ()) == 4
    assert GGML_TYPES["BF16"].number == 30
    with pytest.raises(FormatError, match="a row of 100 elements is not whole Q4_K blocks of 256"):
        row_bytes("Q4_K", 100)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([OutputTensor("t", "F32", (2,)), OutputTensor("t", "F32", (2,))], "'t' would stand twice"),
        ([OutputTensor("x" * 64, "F32", (2,))], "at most 63 bytes"),
        ([OutputTensor("t", "F32", (2, 1, 1, 1, 2))], "more than 4 axes"),
        ([OutputTensor("t", "BOOL", (2,))], "BOOL is no type"),
        ([OutputTensor("t", "Q4_K", (2, 96))], "'t': rows of 96 are not whole Q4_K blocks of 256"),
    ],
)
def test_what_would_not_load_is_not_laid_out(tensors, said):
    with pytest.raises(OutputError, match=said):
        layout(tensors, [])


def test_a_key_twice_is_not_laid_out():
    with pytest.raises(OutputError, match="key 'a' would stand twice"):
        layout([], [KeyValue("a", "u32", bytes(4))] * 2)


@pytest.fixture
def split(tmp_path):
    tensors = [OutputTensor(f"t{i}", "F32", (10,)) for i in range(5)] + [OutputTensor("big", "F32", (100,))]
    arrays, first = write_gguf(tmp_path, tensors, PAIRS[:1], max_shard_bytes=140)
    return arrays, first


def test_shards_are_closed_before_the_tensor_that_would_overflow_them(split):
    arrays, first = split
    assert sorted(os.listdir(first.parent)) == [f"model-{i:05d}-of-00004.gguf" for i in range(1, 5)]
    source = GgufSource(first)
    assert [file.name for file in source.files] == sorted(os.listdir(first.parent))
    assert {n: i.file.name[6:11] for n, i in source.tensors.items()} == {
        "t0": "00001", "t1": "00001", "t2": "00002", "t3": "00002", "t4": "00003", "big": "00004",
    }  # fmt: skip
    reader = source.reader("pread")
    for name, values in arrays.items():
        info = source.tensors[name]
        assert reader.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8)).tobytes() == values.tobytes()
    reader.close()
    places = [[p.value for k, p in read_header(f).key_values.items() if k.startswith("split.")] for f in source.files]
    assert places == [[0, 4, 6], [1, 4, 6], [2, 4, 6], [3, 4, 6]]


def test_a_split_model_is_opened_by_its_first_file_and_must_be_whole(split):
    _, first = split
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    with pytest.raises(FormatError, match="is file 2 of a split model; give the first, model-00001-of-00004.gguf"):
        GgufSource(second)
    third = second.with_name(second.name.replace("00002-of", "00003-of"))
    third.write_bytes(second.read_bytes())
    with pytest.raises(FormatError, match=r"says that it is split 1 of 4, wanted 2 of 4"):
        GgufSource(first)
    third.unlink()
    with pytest.raises(FormatError, match="model-00003-of-00004.gguf: cannot be (opened|read): No such file"):
        GgufSource(first)


@pytest.mark.parametrize("max_shard_bytes", [None, 300_000])
def test_llama_cpp_loads_it(tmp_path, max_shard_bytes):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    shape = Shape(2, hidden=128, feed=256, heads=4, kv_heads=2, vocab=64)
    pairs = [
        *shape.key_values(),
        key_value("llama.rope.dimension_count", "u32", 32),
        key_value("tokenizer.ggml.model", "str", "no_vocab"),
    ]
    tensors = shape.tensors()
    _, path = write_gguf(tmp_path, tensors, pairs, max_shard_bytes)
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {sorted(os.listdir(tmp_path))}"
    try:
        assert llama_cpp.llama_model_n_params(model) == sum(np.prod(t.shape) for t in tensors)
        text = ctypes.create_string_buffer(64)
        llama_cpp.llama_model_meta_val_str(model, b"llama.attention.head_count_kv", text, 64)
        assert text.value == b"2"
    finally:
        llama_cpp.llama_model_free(model)
