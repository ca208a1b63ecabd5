"""Whole merges by template: architectures that are not built in, compared with known values put through numpy."""

import numpy as np
import pytest

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.errors import FormatError, MismatchError, RecipeError
from streammerge.formats.gguf import GgufSource
from streammerge.gguf.template import read_template
from tests.gguf.architectures import (
    ARCHITECTURES,
    config_of,
    encoded,
    recorded,
    rounded,
    save_checkpoint,
    weights_of,
    write_checkpoint,
)
from tests.gguf.checkpoints import content
from tests.gguf.merging import encoded as weighed
from tests.gguf.merging import write_dat
from tests.gguf.test_template import applied


def merged(tmp_path, kind, **options):
    """The average of one agent is the agent: so the output must hold its values. Returns the output and these."""
    base = write_checkpoint(tmp_path, kind)
    values = weights_of(kind, seed=1)
    agent = save_checkpoint(tmp_path / "agent", values, config_of(kind))
    template = recorded(tmp_path, kind)
    output = tmp_path / "out.gguf"
    streammerge.merge(base, [agent], output, method="linear", gguf_template=template, **options)
    told = read_template(template, open_checkpoint(base), "BF16")
    return GgufSource(output), GgufSource(template), applied(told, values)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_weights_are_the_merge_and_the_rest_is_the_template(tmp_path, kind):
    ours, template, values = merged(tmp_path, kind)
    assert [(t.name, t.dtype, t.shape) for t in ours.tensors.values()] == [
        (t.name, t.dtype, t.shape) for t in template.tensors.values()
    ]
    for name, info in ours.tensors.items():
        assert content(ours, name) == rounded(info.dtype, values[name]).tobytes(), name
    own = ("general.name", "general.basename", "general.base_model", "general.tags", "general.file", "general.quant")
    kept = [[p for k, p in source.key_values.items() if not k.startswith(own)] for source in (ours, template)]
    assert kept[0] == kept[1]
    assert ours.key_values["general.name"].value == "out"
    assert ours.key_values["general.base_model.1.name"].value == "agent"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_and_it_can_be_quantized(tmp_path, kind):
    ours, _, values = merged(tmp_path, kind, quantize="Q8_0")
    assert ours.key_values["general.file_type"].value == 7
    assert "Q8_0" in {info.dtype for info in ours.tensors.values()}
    for name, info in ours.tensors.items():
        assert content(ours, name) == encoded(info.dtype, values[name]).tobytes(), name


def test_experts_are_weighed_by_their_own_part_of_an_importance_matrix(tmp_path):
    (tmp_path / "plain").mkdir()
    plain, _, _ = merged(tmp_path / "plain", "mixtral", quantize="Q4_0")
    names = [name for name, info in plain.tensors.items() if "_exps" in name and info.dtype == "Q4_0"]
    assert names
    rng = np.random.default_rng(0)
    shapes = {name: plain.tensors[name].shape for name in names}
    weights = {name: (rng.random(shape[0] * shape[2]) + 1e-3).astype("f4") for name, shape in shapes.items()}
    imatrix = write_dat(tmp_path / "imatrix.dat", weights)
    ours, _, values = merged(tmp_path, "mixtral", quantize="Q4_0", imatrix=imatrix)
    for name, shape in shapes.items():
        if ours.tensors[name].dtype not in ("Q4_0", "Q4_1"):
            continue
        rows = weights[name].reshape(shape[0], shape[2])
        wanted = b"".join(weighed(values[name][e], ours.tensors[name].dtype, rows[e]) for e in range(shape[0]))
        assert content(ours, name) == wanted, name


def test_a_template_of_another_model_is_refused_before_anything_is_written(tmp_path):
    base = write_checkpoint(tmp_path, "qwen2")
    other = save_checkpoint(tmp_path / "other", weights_of("qwen2", seed=2), config_of("qwen2"))
    template = recorded(tmp_path, "qwen2")
    with pytest.raises(MismatchError, match="values"):
        streammerge.merge(other, [base], tmp_path / "out.gguf", gguf_template=template)
    assert not (tmp_path / "out.gguf").exists() and not (tmp_path / "out.gguf.partial").exists()


def test_an_architecture_that_is_not_built_in_says_how_to_get_a_template(tmp_path):
    base = write_checkpoint(tmp_path, "qwen2")
    agent = save_checkpoint(tmp_path / "agent", weights_of("qwen2", seed=1), config_of("qwen2"))
    with pytest.raises(FormatError, match="Qwen2ForCausalLM is not built in .*--gguf-template FILE.*convert_hf"):
        streammerge.merge(base, [agent], tmp_path / "out.gguf")


def test_a_template_is_for_gguf(tmp_path):
    base = write_checkpoint(tmp_path, "qwen2")
    with pytest.raises(RecipeError, match=r"o\.safetensors: is to be safetensors"):
        streammerge.merge(base, [base], tmp_path / "o.safetensors", gguf_template=tmp_path / "t.gguf")
