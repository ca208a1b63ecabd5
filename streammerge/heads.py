"""Heads: models of which some store a head of their own and others use their embedding for it.

``--head tied``: the output has none, those that are stored are left out. ``--head untied``: the output has one; where
a model has none its embedding stands in. Where every config ties the two, a stored head is but a copy: tied.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .aligned import AlignedSource
from .checkpoint import Checkpoint
from .errors import MismatchError
from .recipe import Head
from .selection import Selection
from .vocabulary import input_embedding


@dataclass(frozen=True, slots=True)
class Heads:
    """Models that have a head all or none, the base first. ``tied``: what was chosen, None if they did not differ.
    ``changed`` says how the output differs from the base."""

    models: tuple[Checkpoint, ...]
    notices: tuple[str, ...] = ()
    tied: bool | None = None
    changed: str | None = None


def align_heads(choice: Head | None, models: Sequence[Checkpoint], selection: Selection) -> Heads:
    """Give every model a head or none. Raises MismatchError if they differ and nobody chose."""
    name = _differing(models, selection)
    if name is None:
        unneeded = f"--head {choice} has no effect: all models have a head of their own, or none"
        return Heads(tuple(models), (unneeded,) if choice else ())
    if choice is None and all(model.ties_embeddings for model in models):
        choice = "tied"
    if choice is None:
        raise _explained(name, models)
    tied, stored = choice == "tied", name in models[0].tensors
    aligned = tuple((_without if tied else _with)(model, name) for model in models)
    changed = None if stored != tied else "has no head of its own" if tied else "has a head of its own"
    return Heads(aligned, tuple(_told(choice, name, models)), tied, changed)


def _differing(models: Sequence[Checkpoint], selection: Selection) -> str | None:
    """The head that some models store and others do not, though they have an embedding to use."""
    stored = {
        name: [name in model.tensors for model in models]
        for model in models
        for name in model.tensors
        if model.is_head(name)
    }
    for name, has in stored.items():
        if selection.reason(name) is None and any(has) and not all(has):
            lacking = [model for model, found in zip(models, has, strict=True) if not found]
            if all(input_embedding(model) for model in lacking):
                return name
    return None


def _explained(name: str, models: Sequence[Checkpoint]) -> MismatchError:
    own = next(model for model in models if name in model.tensors)
    tied = next(model for model in models if name not in model.tensors)
    return MismatchError(
        f"{own.path}: has a head of its own, {name!r}; {tied.path} has none and uses its embedding. Choose --head tied "
        "(the output has none, stored ones are left out) or --head untied (it has one, the embedding stands in where a "
        "head is missing)"
    )


def _without(model: Checkpoint, name: str) -> Checkpoint:
    tensors = {other: info for other, info in model.tensors.items() if other != name}
    return model if name not in model.tensors else replace(model, source=AlignedSource(model.source, tensors))


def _with(model: Checkpoint, name: str) -> Checkpoint:
    if name in model.tensors:
        return model
    embedding = input_embedding(model)
    assert embedding is not None
    head = replace(embedding, name=name)
    return replace(model, source=AlignedSource(model.source, {**model.tensors, name: head}))


def _told(choice: Head, name: str, models: Sequence[Checkpoint]) -> Iterator[str]:
    for model in models:
        if choice == "tied" and name in model.tensors:
            yield f"{model.path}: {name!r} is left out: the output's head is its embedding"
        if choice == "untied" and name not in model.tensors:
            yield f"{model.path}: has no {name!r}; its embedding stands in for it"
