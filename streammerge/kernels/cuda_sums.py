"""What the torch backend counts and adds up: the bits of ``sums.py``, operation by operation.

Counts are float32 sums of ones: exact up to 2^24, in whatever order a device adds them, and without the copy that a sum
of booleans makes. All other sums have an order, so each of their steps is an addition of its own, over all tiles or
blocks at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .contract import SAMPLE, SAMPLED_RUN, TILE, Scalar

# What arXiv:2505.11711 takes for equal when it counts updated parameters.
_TOLERANCE = float(np.float32(1e-5))


def number(values: Tensor, axis: int = -1) -> Tensor:
    """How many of at most 2^24 values are not 0, as float32: their norm of order 0."""
    found: Tensor = torch.linalg.vector_norm(values.float(), 0, dim=axis)
    return found


def _halves(row: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves (..., tiles, TILE / 2) of each tile of a row (..., n), filled up with zeros."""
    lacking = -row.shape[-1] % TILE
    padded = torch.nn.functional.pad(row, (0, lacking)) if lacking else row
    tiles = padded.reshape(*row.shape[:-1], -1, TILE)
    return tiles[..., : TILE // 2], tiles[..., TILE // 2 :]


def _folded(products: Tensor) -> Tensor:
    """Tiles (..., tiles, TILE / 2), folded in half until one number of each is left (..., tiles)."""
    half = TILE // 4
    while half:
        products = products[..., :half] + products[..., half:]
        half //= 2
    return products.squeeze(-1)


def _product_of_tiles(x: Tensor, y: Tensor) -> Tensor:
    """x.y (..., tiles) of each tile."""
    (x_left, x_right), (y_left, y_right) = _halves(x), _halves(y)
    return _folded(x_left.double().mul_(y_left).add_(x_right.double().mul_(y_right)))


def _magnitudes_of_tiles(x: Tensor) -> Tensor:
    """The sum of |x| (..., tiles) of each tile."""
    left, right = _halves(x)
    return _folded(left.double().abs_().add_(right.abs()))


def _add_tiles(rows: Sequence[Tensor], sums: Tensor) -> None:
    """Add up the tiles (..., tiles) of all rows at once, tile by tile, on top of ``sums`` (rows, ...)."""
    for tile in torch.stack(list(rows)).unbind(-1):
        sums.add_(tile)


def sums_of_magnitudes(rows: Tensor, sums: Tensor) -> None:
    """See ``Kernels``."""
    _add_tiles([_magnitudes_of_tiles(row) for row in rows], sums)


def inner_products(x: Tensor, y: Tensor, sums: Tensor) -> None:
    """See ``Kernels``."""
    _add_tiles([_product_of_tiles(x, x), _product_of_tiles(x, y), _product_of_tiles(y, y)], sums)


def observe(
    base: Tensor,
    agents: Tensor,
    epsilon: Scalar,
    whole: Tensor,
    by_count: Tensor,
    by_agent: Tensor,
    by_pair: Tensor,
) -> None:
    """See ``Kernels``."""
    limit = float(np.float32(epsilon))
    count = _observe_counts(base, agents, limit, by_count)
    own: list[Tensor] = []
    crossed: list[Tensor] = []
    for i, agent in enumerate(agents):
        delta = agent - base
        _observe_agent(delta, count, limit, by_agent[i])
        own.append(_product_of_tiles(delta, delta))
        for other in agents[i + 1 :]:
            other_delta = other - base
            _observe_pair(delta, other_delta, limit, by_pair[len(crossed)])
            crossed.append(_product_of_tiles(delta, other_delta))
    sums = whole.new_zeros((1 + len(own) + len(crossed), *whole.shape[1:]))
    _add_tiles([_product_of_tiles(base, base), *own, *crossed], sums)
    whole[0].add_(sums[0])
    by_agent[:, 3].add_(sums[1 : 1 + len(own)])
    by_pair[:, 2].add_(sums[1 + len(own) :])
    _observe_samples(base, agents, whole, by_agent)


def _observe_counts(base: Tensor, agents: Tensor, limit: float, by_count: Tensor) -> Tensor:
    """How many agents changed each element."""
    count = torch.zeros_like(base)
    for agent in agents:
        count.add_(torch.hardshrink(agent - base, limit).ne_(0))
    for k, numbers in enumerate(by_count):
        numbers.add_(number(count == k))
    return count


def _observe_agent(delta: Tensor, count: Tensor, limit: float, numbers: Tensor) -> None:
    changed = torch.hardshrink(delta, limit)
    numbers[0].add_(number(changed))
    numbers[1].add_(number(changed.masked_fill_(count != 1, 0)))
    numbers[2].add_(number(torch.hardshrink(delta, _TOLERANCE)))
    numbers[4].copy_(torch.maximum(numbers[4], delta.abs().amax(-1)))


def _observe_pair(x: Tensor, y: Tensor, limit: float, numbers: Tensor) -> None:
    signs = torch.hardshrink(x, limit).sign_().mul_(torch.hardshrink(y, limit).sign_())
    numbers[0].add_(number(signs))
    numbers[1].add_(number(signs.relu_()))


def _observe_samples(base: Tensor, agents: Tensor, whole: Tensor, by_agent: Tensor) -> None:
    if base.shape[-1] >= SAMPLE:
        whole[1].add_(SAMPLE * base.unfold(-1, SAMPLE, SAMPLED_RUN).shape[-2])
        whole[2].add_(_repeats(base))
        by_agent[:, 5].add_(_repeats(agents))


def _repeats(rows: Tensor) -> Tensor:
    """How many values of the samples of each row (..., n) repeat an earlier one of theirs; zeros do not count."""
    samples = rows.unfold(-1, SAMPLE, SAMPLED_RUN)
    equal = samples[..., :, None] == samples[..., None, :]
    repeated = equal.tril_(-1).any(-1).logical_and_(samples != 0)
    return repeated.flatten(-2).sum(-1)
