"""Which tensor comes from where: the models made to agree, and one job for each tensor (or part) of the output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .checkpoint import Checkpoint
from .companions import differences
from .errors import MismatchError, RecipeError
from .formats.contract import TensorInfo
from .formats.dtypes import DTYPES
from .heads import align_heads
from .jobs import Action, TensorJob
from .methods.base import Method
from .recipe import Recipe
from .selection import Selection
from .vocabulary import Vocabulary, align_vocabulary


@dataclass(frozen=True)
class Matched:
    """Models that agree (a head that all have or none, rows of the vocabulary by id), and what is done to them.

    ``tokenizer`` is the model whose tokenizer files the output gets. ``changed`` says how the output differs from what
    the base is, None if it does not.
    """

    base: Checkpoint
    agents: tuple[Checkpoint, ...]
    jobs: tuple[TensorJob, ...]
    notices: tuple[str, ...]
    tokenizer: Checkpoint
    changed: str | None


def match(recipe: Recipe, base: Checkpoint, agents: Sequence[Checkpoint]) -> Matched:
    """Decide about every tensor from headers. Raises MismatchError, RecipeError, FormatError."""
    selection = Selection(recipe, base)
    _check_family(base, agents, selection)
    heads = align_heads(recipe.head, (base, *agents), selection)
    base, *agents = heads.models
    if heads.tied is not None:
        base = replace(base, config=_with_setting(base.config, "tie_word_embeddings", heads.tied))
    vocabulary = align_vocabulary(base, agents, selection)
    models = (base, *vocabulary.agents)
    jobs = tuple(job for info in base.tensors.values() for job in _jobs(recipe, models, info, selection, vocabulary))
    left_out = (_check_extra(base, agent, selection) for agent in agents)
    tokenizer = models[vocabulary.owner]
    notices = [*selection.without_effect, *heads.notices, *vocabulary.notices, *left_out]
    notices += differences(base, agents, tokenizer)
    check_something_is_merged(jobs)
    changed = "has other tokens" if vocabulary.tail or vocabulary.owner else heads.changed
    if vocabulary.resized:
        base = replace(base, config=_with_setting(base.config, "vocab_size", vocabulary.rows))
    return Matched(base, vocabulary.agents, jobs, tuple(filter(None, notices)), tokenizer, changed)


def _with_setting(config: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """A config in which a setting has this value, in the part for text, too; set at the top if nobody says it."""
    if not config:  # there is no config.json
        return {}
    changed = dict(config)
    text = config.get("text_config")
    if isinstance(text, dict) and key in text:
        changed["text_config"] = {**text, key: value}
        if key not in config:
            return changed
    changed[key] = value
    return changed


def check_distinct(base: Checkpoint, agents: Sequence[Checkpoint], method: Method) -> None:
    """No model twice: by file identity, so that links and other spellings are found."""
    seen = {base.identity: f"the base {base.path}"} if method.uses_base else {}
    for number, agent in enumerate(agents, 1):
        if agent.identity in seen:
            raise MismatchError(
                f"agent {number}, {agent.path}, is the same model as {seen[agent.identity]}; leave it out"
            )
        seen[agent.identity] = f"agent {number}, {agent.path}"


def _check_family(base: Checkpoint, agents: Sequence[Checkpoint], selection: Selection) -> None:
    """A model of another architecture is one error, not one for each of its tensors."""
    wanted = [info for info in base.tensors.values() if selection.reason(info.name) is None]
    for agent in agents:
        found = [agent.tensors.get(info.name) for info in wanted]
        others = [(info, own) for info, own in zip(wanted, found) if own is None or own.shape != info.shape]
        if len(others) > max(3, len(wanted) // 2):
            info, own = others[0]
            shape = "is missing" if own is None else f"has shape {list(own.shape)}"
            raise MismatchError(
                f"{agent.path}: was not made from the base {base.path}: {len(others)} of {len(wanted)} tensors are "
                f"missing or have another shape; {info.name!r} {shape}, in the base {list(info.shape)}"
            )


def check_something_is_merged(jobs: Sequence[TensorJob]) -> None:
    """Raise RecipeError if all is copied."""
    if not any(job.action == "merge" for job in jobs):
        raise RecipeError("nothing would be merged: --only and --exclude leave no floating-point tensor")


def _jobs(
    recipe: Recipe, models: Sequence[Checkpoint], info: TensorInfo, selection: Selection, vocabulary: Vocabulary
) -> Iterator[TensorJob]:
    """One tensor of the base: the job that it is, or the parts that a vocabulary tensor has."""
    job = _job(recipe, models[0], info, selection)
    if job.action != "merge":
        yield job
        return
    by_rows = info.name in vocabulary.tensors
    for agent in models[1:]:
        _check_same(recipe, models[0], agent, info, by_rows)
    if by_rows:
        yield from vocabulary.parts(job, [model.tensors[info.name].dtype for model in models])
    else:
        yield job


def _job(recipe: Recipe, base: Checkpoint, info: TensorInfo, selection: Selection) -> TensorJob:
    reason = selection.reason(info.name)
    floating = DTYPES[info.dtype].floating
    dtype = info.dtype if recipe.stored_dtype is None or not floating else recipe.stored_dtype
    if reason is None and not floating:
        reason = f"{info.dtype} is not a floating-point type"
    if reason is not None or info.elements == 0:
        action: Action = "copy" if dtype == info.dtype else "cast"
        return TensorJob(info.name, info.shape, info.dtype, dtype, action, reason or "has no elements")
    embedding = base.embedding_of(info.name)  # counted already, if it is merged
    counted = embedding is None or selection.reason(embedding) is not None
    return TensorJob(info.name, info.shape, info.dtype, dtype, "merge", "in base and every agent", counted)


def _check_same(recipe: Recipe, base: Checkpoint, agent: Checkpoint, info: TensorInfo, by_rows: bool) -> None:
    """One tensor of an agent must have the base's shape and type; merged ``by_rows``, it may have more or fewer."""
    found = agent.tensors.get(info.name)
    leave = f"to leave it as it is in the base: --exclude '^{info.name}$'"
    if found is None:
        hint = " (the agent ties its head to the embedding)" if base.is_head(info.name) else ""
        raise MismatchError(f"{agent.path}: tensor {info.name!r} of the base {base.path} is missing{hint}; {leave}")
    first = 1 if by_rows else 0
    if found.shape[first:] != info.shape[first:]:
        hint = " (added tokens or padding?)" if found.shape[1:] == info.shape[1:] else ""
        raise MismatchError(
            f"{agent.path}: tensor {info.name!r} has shape {list(found.shape)}, the base {base.path} has "
            f"{list(info.shape)}{hint}; {leave}"
        )
    if found.dtype != info.dtype and not (recipe.mixed_dtypes and DTYPES[found.dtype].floating):
        raise MismatchError(
            f"{agent.path}: tensor {info.name!r} is {found.dtype}, in the base {base.path} it is {info.dtype}; "
            "rounding to another type looks like a change of every weight"
            + ("" if recipe.mixed_dtypes else ". If you know better: --mixed-dtypes")
        )


def _check_extra(base: Checkpoint, agent: Checkpoint, selection: Selection) -> str | None:
    """A tensor that only an agent has is an error, unless it is excluded: then it is left out, and said so."""
    extra = [name for name in agent.tensors if name not in base.tensors]
    for name in extra:
        if selection.reason(name) is None:
            hint = ", where the head is tied to the embedding" if base.is_head(name) else ""
            raise MismatchError(
                f"{agent.path}: tensor {name!r} is not in the base {base.path}{hint}; "
                f"to leave it out: --exclude '^{name}$'"
            )
    return f"{agent.path}: left out, not in the base: {', '.join(extra)}" if extra else None
