"""Signals, and a terminal or a pipe that is closed while a merge runs."""

import os
import signal
import subprocess

import pytest

from tests.faults.conftest import SLOWLY, check_nothing_final, check_said, has_begun, run, start, wait_for


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_clean_stop(slow, tmp_path, number):
    child = start(*slow, "-o", tmp_path / "out", *SLOWLY)
    wait_for(lambda: has_begun(tmp_path / "out"))
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    check_said((child.returncode, said), "Error: interrupted", code=130)
    check_nothing_final(tmp_path / "out")


def test_a_terminal_that_is_closed_is_a_clean_stop(slow, tmp_path):
    """It sends SIGHUP, and whatever is written to it fails from then on."""
    master, terminal = os.openpty()
    child = start(*slow, "-o", tmp_path / "out", *SLOWLY, stderr=terminal, stdout=terminal, start_new_session=True)
    os.close(terminal)
    wait_for(lambda: has_begun(tmp_path / "out"))
    os.close(master)
    child.send_signal(signal.SIGHUP)
    assert child.wait(timeout=60) == 130
    check_nothing_final(tmp_path / "out")


def test_nohup_is_respected(slow, tmp_path):
    child = start(*slow, "-o", tmp_path / "out", *SLOWLY, wrap=["nohup"], stdin=subprocess.DEVNULL)
    wait_for(lambda: has_begun(tmp_path / "out"))
    child.send_signal(signal.SIGHUP)
    child.communicate(timeout=60)
    assert child.returncode == 0 and (tmp_path / "out").is_dir()


def test_nobody_reads_the_progress(slow, tmp_path):
    """``2>&1 | head``: no reason to stop a merge of hours."""
    child = start(*slow, "-o", tmp_path / "out", *SLOWLY, stdout=subprocess.DEVNULL)
    child.stderr.close()
    assert child.wait(timeout=60) == 0
    assert (tmp_path / "out").is_dir()


def test_there_is_no_standard_error(models, tmp_path):
    child = start(*models.paths, "-o", tmp_path / "out", preexec_fn=lambda: os.close(2))
    child.communicate(timeout=60)
    assert child.returncode == 0 and (tmp_path / "out").is_dir()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_the_result_cannot_be_printed(models, tmp_path):
    with open("/dev/full", "w") as full:
        said = "the output is whole, but standard output cannot be written: No space left on device"
        check_said(run(*models.paths, "-o", tmp_path / "out", stdout=full), said)
    assert (tmp_path / "out").is_dir()


def test_nobody_reads_the_result(models, tmp_path):
    child = start(*models.paths, "-o", tmp_path / "out")
    child.stdout.close()
    assert child.wait(timeout=60) == 1
    assert "Traceback" not in child.stderr.read()
    assert (tmp_path / "out").is_dir()
