"""More files than a process may have open."""

import resource

import numpy as np
import pytest

from streammerge.errors import FormatError
from streammerge.formats.contract import TensorInfo
from streammerge.formats.reading import open_reader, stamps
from tests.faults.conftest import run


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """64 shards for each of 17 models: 1,088 files."""
    from tests.conftest import save_tensors

    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    names = [f"layers.{number:02d}.weight" for number in range(64)]
    for model in range(17):
        for number, name in enumerate(names):
            raw = rng.standard_normal(2048).astype("f4").tobytes()
            file = folder / f"m{model}" / f"model-{number + 1:05d}-of-00064.safetensors"
            save_tensors(file, {name: ("F32", (2048,), raw)})
    return [folder / f"m{model}" for model in range(17)]


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_more_files_than_may_be_open(many_shards, tmp_path, io):
    """1,088 inputs and 64 outputs by a process that may open a few files, and by one that may open them all."""
    least = 64 if io == "pread" else 128  # each window of each worker takes one more

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))

    options = ["-m", "ties", "--io", io, "--threads", "2", "--max-shard-size", "8192", "--quiet"]
    assert run(*many_shards, "-o", tmp_path / "few", *options, preexec_fn=few) == (0, "")
    assert run(*many_shards, "-o", tmp_path / "many", *options) == (0, "")
    files = sorted(file.name for file in (tmp_path / "few").glob("*.safetensors"))
    assert len(files) == 64
    assert all((tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes() for name in files)


def test_a_file_that_was_closed_and_is_another_when_it_is_opened_again(many_shards, tmp_path, monkeypatch):
    from streammerge.formats import descriptors

    monkeypatch.setattr(descriptors, "_most_open", lambda: 1)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(8))
    reader = open_reader(stamps(paths), "pread")
    tensors = [TensorInfo("w", "U8", (8,), path, 0) for path in paths]
    for info in (*tensors, *tensors):
        reader.read(info, 0, 8, np.empty(8, np.uint8))
    (tmp_path / "c").write_bytes(bytes(8))
    (tmp_path / "c").rename(tmp_path / "a")
    with pytest.raises(FormatError, match="a: was changed while it was read: another file has taken its place"):
        reader.read(tensors[0], 0, 8, np.empty(8, np.uint8))
    reader.close()
