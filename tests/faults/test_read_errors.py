"""Read errors: of a failing disk, by each way of reading."""

import errno
import os

import pytest

from streammerge.errors import FormatError
from tests.faults.conftest import check_nothing_final, check_said, merge, run

EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_a_read_error_names_the_file(own_models, tmp_path, fuse, io):
    (tmp_path / "models/agent-0/model.safetensors").rename(tmp_path / "models/agent-0/bad.safetensors")
    place, _ = fuse(own_models.folder, "--read-error", "bad.safetensors")
    models = [place / "base", place / "agent-0"]
    said = (
        rf"agent-0/bad.safetensors: reading tensor '{EMBEDDING}' at byte \d+ failed: "
        "Input/output error; check the disk"
    )
    check_said(run(*models, "-o", tmp_path / "out", "-m", "ram", "--io", io), said)
    check_nothing_final(tmp_path / "out")


def test_a_read_error_where_no_file_system_makes_one(models, tmp_path, monkeypatch):
    def fail(descriptor, buffers, position):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError, match=r"base/model.safetensors: reading tensor .* failed: Input/output error"):
        merge(models, tmp_path / "out", io="pread")
    check_nothing_final(tmp_path / "out")
