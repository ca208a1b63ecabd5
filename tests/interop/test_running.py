"""llama.cpp loads what we write, and it says what it should."""

import numpy as np
import pytest

import streammerge
from tests.interop.llama_cpp_tools import silence

QUESTION = "What is the capital of France?"


def load(path, **settings):
    import llama_cpp

    silence()
    return llama_cpp.Llama(str(path), n_ctx=256, verbose=False, seed=0, **settings)


def test_it_answers_from_the_merged_and_quantized_file(smollm2):
    """After one example: asked at once, the merged model begins in French, in transformers and unquantized as well."""
    model = load(smollm2.ours("ours-Q4_K_M", quantize="Q4_K_M"))
    chat = [
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "The capital of Italy is Rome."},
        {"role": "user", "content": QUESTION},
    ]
    answer = model.create_chat_completion(chat, max_tokens=12, temperature=0)["choices"][0]["message"]["content"]
    assert "Paris" in answer


def test_a_split_file_runs_too(smollm2):
    output = smollm2.folder / "split.gguf"
    report = streammerge.merge(smollm2.base, smollm2.agents, output, quantize="Q4_K_M", max_shard_size="40MB")
    names = report.to_dict()["files"]
    assert len(names) > 2 and names[0] == f"split-00001-of-0000{len(names)}.gguf"
    model = load(smollm2.folder / names[0])
    assert "Paris" in model("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"]


def test_logits_are_those_of_transformers(smollm2):
    """Unquantized bf16, with float32 arithmetic on the other side: the largest logits agree to a few hundredths."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = smollm2.folder / "merged"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(QUESTION)["input_ids"]
    with torch.no_grad():
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wanted = reference(torch.tensor([tokens])).logits[0].numpy()
    model = load(smollm2.ours("merged"), logits_all=True)
    assert model.tokenize(QUESTION.encode(), add_bos=False) == tokens
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.8
    spread = wanted.std()
    assert np.abs(found - wanted).max() < 0.1 * spread, (np.abs(found - wanted).max(), spread)
