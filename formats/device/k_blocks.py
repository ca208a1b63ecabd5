"""Blocks of the K types, all of a chunk at once: ``quants/k_blocks.py`` in torch.

Tensors are ``(count, subs, blocks)``: element i of sub-block j of each block lies at ``[i, j]``. So the i-th elements
of all sub-blocks are one contiguous row, and a sum over elements is a few additions of rows. What a sub-block has once
is ``(subs, blocks)``, what a block has once ``(blocks)``.
"""

import torch
from torch import Tensor

from .fields import root
from .fused import find

BLOCK = 256


def by_element(values: Tensor, count: int) -> Tensor:
    """Rows of elements as ``(count, subs, blocks)`` for sub-blocks of ``count``, a copy."""
    return values.view(-1, BLOCK // count, count).permute(2, 1, 0).contiguous()


def added(terms: Tensor) -> Tensor:
    """The sum along the first axis, in its order, each addition rounded."""
    if (fused := find(terms.device)) is not None:
        total: Tensor = fused.added(terms)
        return total
    first, *others = terms.unbind()
    total = first + 0.0  # sums begin with 0 in ggml: no sum of zeros is -0
    for term in others:
        total += term
    return total


def _sum_by_block(terms: Tensor) -> Tensor:
    """``(blocks)``: the sum of all elements of a block, in their order."""
    return added(terms.transpose(0, 1).flatten(0, 1))


def of_columns(weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The importance of each element, and a view of ``x`` that it is broadcast to."""
    importance = by_element(weights, x.shape[0]).unsqueeze(2)
    return importance, x.view(*x.shape[:2], -1, importance.shape[3])


def weigh_by_importance(x: Tensor, weights: Tensor, factor: float) -> Tensor:
    """Weights with an importance matrix, like ``x``; ``factor`` times the mean square of a block goes into them."""
    squares = x * x
    squares += _sum_by_block(squares).mul_(factor).mul_(1 / BLOCK)
    w = root(squares)
    del squares
    importance, view = of_columns(weights, w)
    view *= importance
    return w


def signed_peak(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along the first axis the greatest magnitude, and the first number that has it; NaN counts as 0."""
    x = x.nan_to_num(0.0, torch.inf, -torch.inf)
    extreme = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    return extreme.abs(), extreme


def in_order(levels: Tensor) -> Tensor:
    """Codes ``(count, subs, blocks)`` as ``(256, blocks)``, the elements in their order."""
    return levels.transpose(0, 1).reshape(BLOCK, -1)


def put(rows: Tensor, out: Tensor) -> None:
    """Bytes ``(..., blocks)`` into ``out``, (blocks, bytes)."""
    out.copy_(rows.reshape(-1, rows.shape[-1]).t())


def put_joined(low: Tensor, high: Tensor, out: Tensor) -> None:
    """The low four bits of two codes to a byte."""
    put((low & 15).bitwise_or_(high << 4), out)


def put_bits(levels: Tensor, bit: int, out: Tensor) -> None:
    """Byte l has one bit of each of the elements 32 j + l, at place j."""
    runs = levels.view(8, 32, -1)
    total = torch.zeros_like(runs[0])
    for place, run in enumerate(runs.unbind()):
        total |= (run >> bit).bitwise_and_(1).bitwise_left_shift_(place)
    put(total, out)


def put_pairs(codes: Tensor, out: Tensor) -> None:
    """The low two bits of four codes to a byte: of ``codes``, (runs, 4, bytes of a run, blocks), the first lowest."""
    total = codes[:, 0] & 3
    for place in range(1, 4):
        total |= (codes[:, place] & 3).bitwise_left_shift_(2 * place)
    put(total, out)
