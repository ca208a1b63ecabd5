"""Our GGUF files against llama.cpp's own way: our safetensors output, its converter, its quantizer. Every byte."""

import pytest

import streammerge
from streammerge.gguf.policy import FILE_TYPES
from tests.gguf.merging import write_dat
from tests.interop.llama_cpp_tools import (
    check_same_metadata,
    check_same_tensors,
    convert,
    quantize,
)

# What a file says about where it comes from: two steps know the folder between them, one step knows the inputs.
LINEAGE = ("general.name", "general.basename", "general.finetune", "general.base_model", "general.size_label")
WANTED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS")
OTHERS = ("Q4_K_S", "Q5_1", "IQ4_NL", "TQ2_0", "F16", "BF16")


def check(model, kind, imatrix=False):
    options = {}
    weights = model.imatrix() if imatrix else None
    if imatrix:
        options["imatrix"] = write_dat(model.folder / "imatrix.dat", weights)
    ours = model.ours(f"ours{'-imatrix' * imatrix}-{kind}", quantize=kind, **options)
    theirs = model.folder / f"theirs{'-imatrix' * imatrix}-{kind}.gguf"
    quantize(model.converted, theirs, FILE_TYPES[kind].number, imatrix=weights)
    check_same_tensors(ours, theirs)
    check_same_metadata(ours, theirs, (*LINEAGE, *(("quantize.imatrix",) if imatrix else ())))
    theirs.unlink()


def test_unquantized_it_is_the_converters_file(smollm2):
    ours = smollm2.ours("merged")
    check_same_tensors(ours, smollm2.converted)
    check_same_metadata(ours, smollm2.converted, LINEAGE)


@pytest.mark.parametrize("kind", [*WANTED, *OTHERS])
def test_a_real_model(smollm2, kind):
    check(smollm2, kind)


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ4_XS", "Q4_0", "Q2_K"])
def test_a_real_model_with_an_importance_matrix(smollm2, kind):
    check(smollm2, kind, imatrix=True)


@pytest.mark.parametrize("kind", [*WANTED, *OTHERS])
def test_generated_models(generated, kind):
    check(generated, kind)


@pytest.mark.parametrize("kind", [*WANTED, "Q2_K_S"])
def test_generated_models_with_an_importance_matrix(generated, kind):
    check(generated, kind, imatrix=True)


@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_another_type_between_the_two_steps(generated, outtype, tmp_path):
    """--intermediate is what safetensors and converter would have stored: --dtype and --outtype of the two steps."""
    dtype = {"f16": "float16", "f32": "float32"}[outtype]
    streammerge.merge(generated.base, generated.agents, tmp_path / "merged", dtype=dtype)
    converted = convert(tmp_path / "merged", tmp_path / "converted.gguf", outtype, pre="llama-bpe")
    theirs = quantize(converted, tmp_path / "theirs.gguf", FILE_TYPES["Q4_K_M"].number)
    ours = generated.ours(f"ours-from-{outtype}-Q4_K_M", quantize="Q4_K_M", intermediate=outtype)
    check_same_tensors(ours, theirs)


def test_a_difference_is_seen(generated):
    """The comparison itself: one changed bit in one tensor fails it."""
    ours = generated.ours("ours-Q8_0", quantize="Q8_0")
    bent = generated.folder / "bent.gguf"
    content = bytearray(ours.read_bytes())
    content[-40] ^= 1
    bent.write_bytes(content)
    with pytest.raises(AssertionError, match="1 of .* bytes differ"):
        check_same_tensors(bent, ours)


def test_what_is_compared_is_a_merge(smollm2):
    base, merged = (smollm2.folder / name / "model.safetensors" for name in ("base", "merged"))
    assert base.read_bytes() != merged.read_bytes()


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "BF16"])
def test_added_tokens(extended, kind):
    check(extended, kind, imatrix=kind == "Q4_K_M")
