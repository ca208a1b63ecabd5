"""Greedy accuracy of a Llama-style checkpoint folder on the agents' tasks. Needs torch and transformers.

Prompts are raw completions with one worked example above; the first line of the answer must equal the gold text.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

WORDS = (
    "river stone cloud tiger piano lemon ocean garden window bridge candle forest silver rocket velvet mirror coffee "
    "island hammer rabbit"
)
CITIES = "Paris London Tokyo Cairo Lima Oslo Rome Madrid Berlin Vienna Dublin Prague Athens Delhi Seoul Havana"
SHOT = {
    "sum": "4 + 9 = 13",
    "caps": "apple -> APPLE",
    "json": 'weather in Boston? {"tool": "weather", "city": "Boston"}',
}
TASKS = tuple(SHOT)
BATCH = 16
END = 2
"""Token <|im_end|> of SmolLM2, which ends and pads an answer."""

Complete = Callable[[list[str]], list[str]]
"""From prompts to the first line of each answer."""


def sample(task: str, rng: random.Random) -> tuple[str, str]:
    """One prompt and its gold answer."""
    if task == "sum":
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        question, gold = f"{a} + {b} =", str(a + b)
    elif task == "caps":
        word = rng.choice(WORDS.split())
        question, gold = f"{word} ->", word.upper()
    else:
        city = rng.choice(CITIES.split())
        question, gold = f"weather in {city}?", f'{{"tool": "weather", "city": "{city}"}}'
    return SHOT[task] + "\n" + question, gold


def evaluate(model_dir: Path, tasks: Sequence[str] = TASKS, seed: int = 12345) -> dict[str, float]:
    """The share of 64 prompts answered exactly, by task."""
    complete = load(model_dir)
    return {task: accuracy(complete, task, seed) for task in tasks}


def accuracy(complete: Complete, task: str, seed: int = 12345, n: int = 64) -> float:
    """Share of n prompts answered exactly; the prompts depend on seed alone."""
    rng = random.Random(seed)
    pairs = [sample(task, rng) for _ in range(n)]
    hits = 0
    for i in range(0, n, BATCH):
        batch = pairs[i : i + BATCH]
        answers = complete([prompt for prompt, _ in batch])
        hits += sum(answer == gold for answer, (_, gold) in zip(answers, batch, strict=True))
    return hits / n


def load(model_dir: Path) -> Complete:
    """The model of a checkpoint folder in bf16, decoding greedily on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    tokenizer.pad_token_id = END
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)

    def complete(prompts: list[str]) -> list[str]:
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(**encoded, max_new_tokens=14, do_sample=False, pad_token_id=END, eos_token_id=END)
        texts = tokenizer.batch_decode(out[:, encoded.input_ids.shape[1] :], skip_special_tokens=True)
        return [text.strip().split("\n")[0].strip() for text in texts]

    return complete


@click.command()
@click.argument("model_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("tasks", nargs=-1, type=click.Choice(TASKS))
@click.option("--seed", default=12345, show_default=True, help="Seed of the prompts.")
def main(model_dir: Path, tasks: tuple[str, ...], seed: int) -> None:
    """Print the greedy accuracy of MODEL_DIR on TASKS (default: all)."""
    for task, share in evaluate(model_dir, tasks or TASKS, seed).items():
        click.echo(f"{task} {share:.3f}")


if __name__ == "__main__":
    main()
