"""Records what mergekit 0.1.5 makes of tiny Llama-shaped checkpoints: the other side of tests/methods/test_mergekit.py.

    python scripts/record_mergekit.py            (in an environment with mergekit==0.1.5; writes the fixture anew)

The checkpoints come from a seed, through integers and powers of two alone, so that every machine makes the same bits.
Of an output only the bits that differ from the base are kept; most are zero and compress well.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Model = dict[str, NDArray[np.float32]]

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "mergekit" / "recorded.npz"


@dataclass(frozen=True)
class Size:
    """Of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }


USUAL = Size(64, 96, 2, 128)
THREE = ("agent1", "agent2", "agent3")


@dataclass(frozen=True)
class Recording:
    """One merge, in our words: a list is one value for each agent."""

    method: str
    agents: tuple[str, ...] = THREE
    parameters: dict[str, Any] = field(default_factory=dict)


WEIGHTS = {"weight": [0.6, 0.3, 1.1]}
RECORDINGS = {
    "ram": Recording("ram"),
    "ramplus_tl": Recording("ramplus_tl"),
    "ramplus_tl_r": Recording("ramplus_tl", parameters={"r": 0.3, "alpha": 0.9, "epsilon": 3e-5}),
    "linear": Recording("linear", parameters=WEIGHTS),
    "task_arithmetic": Recording("task_arithmetic", parameters={**WEIGHTS, "lambda": 0.7}),
    "task_arithmetic_mean": Recording("task_arithmetic", parameters={**WEIGHTS, "normalize": True}),
    "ties": Recording("ties", parameters={**WEIGHTS, "density": 0.3}),
    "ties_sum": Recording("ties", parameters={"weight": 0.8, "density": 0.3, "normalize": False, "lambda": 1.3}),
    "dare_linear": Recording("dare_linear", parameters={**WEIGHTS, "density": 1.0}),
    "slerp": Recording("slerp", ("agent3",), {"t": 0.3}),
    "slerp_beyond_half": Recording("slerp", ("agent3",), {"t": 0.8}),
    "slerp_spherical": Recording("slerp", ("far",), {"t": 0.3}),
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama of this size."""
    hidden, intermediate, vocabulary = size.hidden, size.intermediate, size.vocabulary
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(size.layers):
        within = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden // 2, hidden),
            ("self_attn.v_proj", hidden // 2, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", intermediate, hidden),
            ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ):
            found[f"{within}{name}.weight"] = (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{within}{name}.weight"] = (hidden,)
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


class _Dice:
    """Random numbers whose bits no version of numpy changes: the raw words of its Philox generator."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Philox(key=seed)

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """Integers from 0 up to a power of two."""
        return (self._generator.random_raw(count) >> np.uint64(64 - (limit - 1).bit_length())).astype(np.int64)

    def weights(self, count: int) -> NDArray[np.float64]:
        """Evenly spread over -1/16 to 1/16, exact in float32."""
        return (self.below(1 << 24, count) - (1 << 23)) / 2.0**27

    def updates(self, count: int, share: float) -> NDArray[np.float64]:
        """Zero but for a share of the elements; those are spread over the powers of two from 2^-18 to 2^-10."""
        magnitude = (1 + self.below(1 << 20, count) / 2.0**20) * 2.0 ** -(11.0 + self.below(8, count))
        signed = np.where(self.below(2, count) == 1, magnitude, -magnitude)
        return np.where(self.below(1 << 16, count) < share * (1 << 16), signed, 0.0)


def make_models(seed: int = 2, size: Size = USUAL) -> dict[str, Model]:
    """Base, three agents that changed few weights of it, some of them together, and one far from the base."""
    dice = _Dice(seed)
    models: dict[str, Model] = {name: {} for name in ("base", *THREE, "far")}
    shares = (0.05, 0.6, 0.2, 0.0, 0.4)
    for number, (name, shape) in enumerate(shapes(size).items()):
        count = int(np.prod(shape))
        base = (dice.weights(count) + (1.0 if len(shape) == 1 else 0.0)).astype(np.float32)
        models["base"][name] = base.reshape(shape)
        for agent, own in enumerate(THREE):
            update = dice.updates(count, shares[(number + 2 * agent) % len(shares)])
            models[own][name] = (base + update).astype(np.float32).reshape(shape)
        far = dice.weights(count).astype(np.float32)
        models["far"][name] = (far if "layers.0" in name else base).reshape(shape)
    return models


def fingerprint(models: dict[str, Model]) -> str:
    """SHA-256 over all weights: whether a recording belongs to these inputs."""
    digest = sha256()
    for model in models.values():
        for name in sorted(model):
            digest.update(model[name].tobytes())
    return digest.hexdigest()


def flat_bits(model: Model) -> NDArray[np.uint32]:
    """All weights in the order of their names, as bits."""
    return np.concatenate([model[name].ravel() for name in sorted(model)]).view(np.uint32)


def pack(bits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The bytes sorted by significance, which compresses better."""
    return np.ascontiguousarray(bits.astype("<u4").view(np.uint8).reshape(-1, 4).T)


def unpack(planes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """What ``pack`` packed."""
    return np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.uint32)


def mergekit_yaml(recording: Recording, folder: Path) -> dict[str, Any]:
    """The recording as mergekit's configuration; the checkpoints lie in ``folder``."""
    own = {name: value for name, value in recording.parameters.items() if isinstance(value, list)}
    shared = {name: value for name, value in recording.parameters.items() if name not in own}
    models: list[dict[str, Any]] = [
        {"model": str(folder / agent), "parameters": {name: values[place] for name, values in own.items()}}
        for place, agent in enumerate(recording.agents)
    ]
    config: dict[str, Any] = {"merge_method": recording.method, "dtype": "float32", "models": models}
    config["parameters"] = shared
    if recording.method == "slerp":
        models.insert(0, {"model": str(folder / "base")})
    if recording.method != "linear":
        config["base_model"] = str(folder / "base")
    return config


def write_models(folder: Path, models: dict[str, Model], size: Size = USUAL) -> None:
    """Every model as a folder of its name, with its config.json."""
    from safetensors.numpy import save_file

    for name, tensors in models.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(size.config()))
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})


def run_mergekit(configuration: dict[str, Any], output: Path) -> Model:
    """What mergekit makes of a configuration."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from mergekit.config import MergeConfiguration  # type: ignore[import-not-found, unused-ignore]
    from mergekit.merge import run_merge  # type: ignore[import-not-found, unused-ignore]
    from mergekit.options import MergeOptions  # type: ignore[import-not-found, unused-ignore]
    from safetensors.numpy import load_file

    config = MergeConfiguration.model_validate(configuration)
    run_merge(config, str(output), MergeOptions(copy_tokenizer=False, quiet=True, safe_serialization=True))
    merged: Model = {}
    for file in sorted(output.glob("*.safetensors")):
        merged.update(load_file(file))
    return merged


def magnitudes_are_distinct(models: dict[str, Model], density: float) -> bool:
    """Whether no agent has equal magnitudes at the threshold of this density, apart from zero."""
    for name, base in models["base"].items():
        for agent in THREE:
            sizes = np.sort(np.abs(models[agent][name] - base).ravel())[::-1]
            kept = max(1, int(density * sizes.size))
            if sizes[kept - 1] > 0 and sizes[kept - 1] == sizes[kept]:
                return False
    return True


def main() -> None:
    """Write the fixture."""
    models = make_models()
    assert magnitudes_are_distinct(models, 0.3), "choose another seed: which of equal magnitudes stays is undefined"
    base = flat_bits(models["base"])
    kept: dict[str, Any] = {"inputs": fingerprint(models), "mergekit": version("mergekit"), "torch": version("torch")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder / "models", models)
        for name, recording in RECORDINGS.items():
            merged = run_mergekit(mergekit_yaml(recording, folder / "models"), folder / name)
            assert merged.keys() == models["base"].keys()
            kept[name] = pack(flat_bits(merged) ^ base)
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FIXTURE, **kept)
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
