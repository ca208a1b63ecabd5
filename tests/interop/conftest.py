"""Models merged both ways: the sample's real ones, and generated ones whose rows are whole blocks of 256."""

import numpy as np
import pytest

import streammerge
from bench.sample.agents import AGENTS, DATA, make_unpacked
from bench.sample.shapes import Shape
from bench.sample.smollm2 import make_smollm2
from streammerge.formats.gguf import GgufSource
from tests.gguf.merging import make_models
from tests.gguf.test_vocabulary_output import make_extended
from tests.interop.llama_cpp_tools import convert, source_folder


class Model:
    """Base, agents, and what two steps make of their merge."""

    def __init__(self, folder, base, agents, pre=None):
        self.folder, self.base, self.agents, self.pre = folder, base, agents, pre
        streammerge.merge(base, agents, folder / "merged")
        self.converted = convert(folder / "merged", folder / "converted.gguf", pre=pre)

    def ours(self, name, **options):
        output = self.folder / f"{name}.gguf"
        if not output.exists():
            streammerge.merge(self.base, self.agents, output, pre_tokenizer=self.pre, **options)
        return output

    def imatrix(self):
        """Importance of the columns of every matrix but the embedding, as llama-imatrix would write it."""
        rng = np.random.default_rng(5)
        tensors = [t for t in GgufSource(self.converted).tensors.values() if len(t.shape) > 1]
        return {
            t.name: (rng.random(t.shape[-1]) ** 3 + 1e-4).astype("f4") for t in tensors if t.name != "token_embd.weight"
        }


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The real model and its real agents."""
    source_folder()
    folder = tmp_path_factory.mktemp("smollm2")
    base = make_smollm2(folder / "base")
    for name in AGENTS:
        make_unpacked(folder / name, base, DATA / f"{name}.xz")
    return Model(folder, base, [folder / name for name in AGENTS])


@pytest.fixture(scope="module", params=["tied", "untied"])
def generated(request, tmp_path_factory):
    """Rows that are whole blocks of 256, heads of two sizes, four query heads to a key head."""
    source_folder()
    folder = tmp_path_factory.mktemp(request.param)
    tied = request.param == "tied"
    shape = Shape(layers=8, hidden=512, intermediate=1024, heads=8, kv_heads=2, vocab=512, tied=tied)
    base, agents = make_models(folder, shape)
    return Model(folder, base, agents, pre="llama-bpe")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """An agent with two tokens more, in an embedding and a head that are padded to 576 rows."""
    source_folder()
    folder = tmp_path_factory.mktemp("extended")
    shape = Shape(layers=2, hidden=512, intermediate=1024, heads=8, kv_heads=2, vocab=512, tied=False)
    return Model(folder, *make_extended(folder, shape, rows=576), pre="llama-bpe")
