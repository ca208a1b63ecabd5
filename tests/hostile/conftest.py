"""What tests of hostile input share."""

import json

import pytest

import streammerge
from streammerge.errors import StreammergeError
from streammerge.escape import printable
from tests.fuzz.corpus import corpus


@pytest.fixture
def llama(tmp_path):
    """A whole tiny Llama with everything beside it, and an agent."""
    for path, raw in corpus().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(raw)
    return tmp_path / "base", tmp_path / "agent"


def change(path, **fields):
    """A JSON file with some fields replaced."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(said, base, agent, output=None, **options):
    """A plan fails with a short error of ours, on one line."""
    with pytest.raises(StreammergeError, match=said) as caught:
        streammerge.plan(base, [agent], output, method="ram", **options)
    assert len(str(caught.value)) < 1000 and len(printable(str(caught.value)).splitlines()) == 1


def merged(pair, tmp_path):
    base, agent = pair
    streammerge.merge(base, [agent], tmp_path / "out", method="ram")
    return tmp_path / "out"
