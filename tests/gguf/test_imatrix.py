import struct

import numpy as np
import pytest

from streammerge.errors import FormatError, MismatchError
from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import GgufSink, key_value, layout
from streammerge.gguf.imatrix import Imatrix, read_imatrix

PAIRS = [
    key_value("general.type", "str", "imatrix"),
    key_value("imatrix.datasets", "[str]", ["wiki.txt", "other.txt"]),
    key_value("imatrix.chunk_count", "u32", 7),
    key_value("imatrix.chunk_size", "u32", 512),
]


def write_new(folder, arrays, pairs=PAIRS):
    tensors = [OutputTensor(name, "F32", np.shape(values)) for name, values in arrays.items()]
    sink = GgufSink(folder, layout(tensors, pairs, single_name="imatrix.gguf"))
    for name, values in arrays.items():
        sink.write(name, 0, np.frombuffer(np.asarray(values, "<f4").tobytes(), np.uint8))
    sink.sync()
    sink.close()
    return folder / "imatrix.gguf"


def write_old(path, entries, trailer=b""):
    parts = [struct.pack("<i", len(entries))]
    for name, (calls, values) in entries.items():
        parts.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)))
        parts.append(np.asarray(values, "<f4").tobytes())
    path.write_bytes(b"".join(parts) + trailer)
    return path


def test_the_gguf_format(tmp_path):
    path = write_new(tmp_path, {
        "a.in_sum2": [[3.0, 6.0, 9.0]], "a.counts": [[3.0]],
        "e.in_sum2": [[2.0, 4.0], [5.0, 5.0]], "e.counts": [[2.0], [0.0]],
        "s.in_sum2": [[2.0, 4.0], [6.0, 8.0]], "s.counts": [[2.0]],
    })  # fmt: skip
    found = read_imatrix(path, 1 << 30)
    assert {name: list(values) for name, values in found.weights.items()} == {
        "a": [1.0, 2.0, 3.0], "e": [1.0, 2.0, 1.0, 1.0], "s": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    assert all(values.dtype == np.float32 for values in found.weights.values())
    assert [(p.key, p.value) for p in found.key_values()] == [
        ("quantize.imatrix.file", str(path)[:127]),
        ("quantize.imatrix.dataset", "wiki.txt"),
        ("quantize.imatrix.entries_count", 3),
        ("quantize.imatrix.chunks_count", 7),
    ]


def test_the_older_format(tmp_path):
    entries = {"a": (3, [1.0, 2.0]), "b": (0, [5.0])}
    plain = read_imatrix(write_old(tmp_path / "plain.dat", entries), 1 << 30)
    assert plain.weights["a"].tobytes() == (np.array([1, 2], "f4") / np.float32(3)).tobytes()
    assert list(plain.weights["b"]) == [5.0]
    assert [p.key for p in plain.key_values()] == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    trailer = struct.pack("<ii", 9, 4) + b"data"
    found = read_imatrix(write_old(tmp_path / "m.dat", entries, trailer), 1 << 30)
    assert (found.dataset, found.chunks) == ("data", 9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "truncated: 4 bytes wanted at 0"),
        (struct.pack("<i", 0), "holds no entries"),
        (struct.pack("<ii", 1, 2**31 - 1), "no importance matrix, or truncated"),
        (struct.pack("<ii", 1, -5), "no importance matrix, or truncated"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**30), "truncated"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, np.inf), "'a' are not all finite"),
    ],
)
def test_a_wrong_older_file_is_refused(tmp_path, content, said):
    path = tmp_path / "m.dat"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said) as caught:
        read_imatrix(path, 1 << 30)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "pairs", "said"),
    [
        ({"a.in_sum2": [1.0], "a.counts": [1.0]}, PAIRS[1:], "no importance matrix; make one with llama-imatrix"),
        ({"a.in_sum2": [1.0]}, PAIRS, "'a.counts' is missing"),
        ({"a.in_sum2": [1.0, 2.0, 3.0], "a.counts": [1.0, 1.0]}, PAIRS, "3 sums, which are not 2 matrices"),
        ({"other": [1.0]}, PAIRS, "holds no entries"),
    ],
)
def test_a_wrong_gguf_file_is_refused(tmp_path, arrays, pairs, said):
    with pytest.raises(FormatError, match=said):
        read_imatrix(write_new(tmp_path, arrays, pairs), 1 << 30)


def test_it_must_fit_the_model(tmp_path):
    ones = np.ones(6, np.float32)
    found = Imatrix(tmp_path, {"a.weight": ones, "token_embd.weight": ones})
    assert found.of(OutputTensor("a.weight", "F32", (4, 6))).shape == (1, 6)
    assert found.of(OutputTensor("a.weight", "F32", (2, 4, 3))).shape == (2, 3)
    assert found.of(OutputTensor("b.weight", "F32", (4, 6))) is None
    assert found.of(OutputTensor("token_embd.weight", "F32", (4, 8))) is None
    with pytest.raises(MismatchError, match="6 values for tensor 'a.weight', wanted 1 x 8; .* another model"):
        found.check([OutputTensor("a.weight", "F32", (4, 8))])
    with pytest.raises(MismatchError, match="names no tensor of this model"):
        found.check([OutputTensor("b.weight", "F32", (4, 8))])
