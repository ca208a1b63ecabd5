"""A fast share of ``scripts/fuzz``: broken inputs end in success or in an error of ours, and nothing else happens."""

import os

import pytest

from tests.fuzz.__main__ import run, warm_up
from tests.fuzz.guard import Broken, Hang, check_memory, watched
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")


def test_broken_inputs_end_in_success_or_in_an_error_of_ours():
    warm_up()  # which whole inputs pass
    ends, findings = run(0, range(10 * len(TARGETS)))
    assert findings == []
    refused = {end.partition(": ")[0] for end in ends if not end.endswith("done")}
    assert refused >= {target.name for target in TARGETS} - {"statistics", "overwrite"}  # which stop nobody


def test_the_guard_sees_what_must_not_happen(tmp_path, monkeypatch):
    own = tmp_path / "out"
    own.mkdir()
    with watched(own):
        (own / "a").write_text("fine")
    with pytest.raises(Broken, match="touched what is not its own"), watched(own):
        (tmp_path / "b").write_text("not fine")
    with pytest.raises(Broken, match="touched"), watched(own):
        os.system("true")
    monkeypatch.setattr("tests.fuzz.guard.SECONDS", 0.1)
    with pytest.raises(Hang), watched(own):
        while True:
            pass
    with pytest.raises(Broken, match="grew"):
        check_memory(-(1 << 30))
