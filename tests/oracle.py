"""The merge methods once more: plain, slow, whole tensors at once. What streammerge.merge is compared with.

Written from the formulas, not from the engine. Values are one-dimensional float32 arrays, ``agents`` is
(agents, elements). numpy rounds after every elementwise float32 operation and never fuses two of them, so
these formulas define the result to the bit, sums over agents being loops in agent order. Sums over elements are
exact sums of float64 values (math.fsum).
"""

from hashlib import blake2b
from math import acos, fsum, inf, sin, sqrt

import ml_dtypes
import numpy as np

F32 = np.float32
STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def per_agent(value, agents):
    return [float(v) for v in (value if isinstance(value, list | tuple) else [value] * agents)]


# --- Reinforced Agent Merging ---------------------------------------------------------------------------------------


def changed_by(base, agents, epsilon):
    return np.abs(agents - base) > F32(epsilon)


def count_changes(base, agents, epsilon):
    """(changed, unique) of every agent."""
    changed = changed_by(base, agents, epsilon)
    alone = changed & (changed.sum(axis=0) == 1)
    return np.stack([changed.sum(axis=1), alone.sum(axis=1)], axis=1)


def ram(base, agents, epsilon=1e-5, scales=None):
    changed = changed_by(base, agents, epsilon)
    count = changed.sum(axis=0)
    scales = np.ones(len(agents)) if scales is None else scales
    total, out = np.zeros_like(base), base.copy()
    for agent, own in zip(agents, changed):
        total[own] += (agent - base)[own]
    shared = count >= 2
    out[shared] = base[shared] + total[shared] / count[shared].astype(F32)
    for agent, own, scale in zip(agents, changed, scales):
        alone = own & (count == 1)
        out[alone] = base[alone] + (agent - base)[alone] * F32(scale)
    return out


def ram_divide_first(base, agents, epsilon, scales):
    changed = changed_by(base, agents, epsilon)
    count = changed.sum(axis=0)
    total, out = np.zeros_like(base), base.copy()
    for agent, own, scale in zip(agents, changed, scales):
        alone, shared = own & (count == 1), own & (count >= 2)
        delta = agent - base
        total[alone] += delta[alone] * F32(scale)
        total[shared] += delta[shared] / count[shared].astype(F32)
    some = count > 0
    out[some] = base[some] + total[some]
    return out


def ram_plus_scales(counts, r=0.1, alpha=0.2):
    """lambda_i = 1 + r * clip(shared_i / unique_i, 0, alpha), from the counts of the whole model."""
    scales = []
    for changed, unique in counts.tolist():
        shared = changed - unique
        ratio = shared / unique if unique else (inf if shared else 0.0)
        scales.append(1 + r * min(ratio, alpha))
    return np.array(scales).astype(F32)


def arm_r_v2(base, agents, counts, rescale_factor=1.05, threshold=1e-5):
    """The mode arm-r-v2 of the authors' released code; where that divides by zero the ratio is 1.

    avg = sum of the changed deltas / max(count, 1); unique ones times 1 + (R - 1) * min(1, shared / not shared).
    """
    rescales = []
    for changed, unique in counts.tolist():
        overlap = changed - unique
        ratio = 0.0 if changed == 0 else 1.0 if changed == overlap else overlap / (changed - overlap)
        rescales.append(F32(1.0 + (rescale_factor - 1.0) * min(1.0, ratio)))
    mask = np.stack([np.abs(agent - base) > F32(threshold) for agent in agents]).astype(F32)
    count = mask.sum(axis=0)
    total, weighted = np.zeros_like(base), np.zeros_like(base)
    for agent, own, rescale in zip(agents, mask, rescales):
        total = total + (agent - base) * own
        weighted = weighted + (agent - base) * own * rescale
    average = total / np.maximum(count, F32(1))
    return base + np.where(count >= 2, average, np.where(count == 1, weighted, F32(0)))


def ramplus_tl(base, agents, r=0.1, alpha=0.2, epsilon=1e-5):
    """mergekit's tensor-local variant: everything in float32, shared deltas divided before they are added."""
    scales = []
    for changed, unique in count_changes(base, agents, epsilon).tolist():
        floor = max(F32(unique), F32(epsilon))
        ratio = F32(changed - unique) / floor if floor else F32(inf if changed else 0)
        scales.append(F32(1) + F32(r) * min(ratio, F32(alpha)))
    return ram_divide_first(base, agents, epsilon, scales)


# --- weighted sums --------------------------------------------------------------------------------------------------


def linear(base, agents, weight=1.0, normalize=True):
    """The base only says where no agent changed anything: there an average is the base itself, bit for bit."""
    total, divisor = np.zeros_like(base), F32(0)
    for agent, w in zip(agents, per_agent(weight, len(agents))):
        total = total + agent * F32(w)
        divisor = divisor + F32(w)
    if not normalize:
        return total
    return np.where((agents == base).all(axis=0), base, total / divisor)


def add_weighted(base, deltas, weight, lambda_, normalize):
    """base + lambda * sum of w_i * delta_i, over the sum of the weights if normalize."""
    total, divisor = np.zeros_like(base), F32(0)
    for delta, w in zip(deltas, per_agent(weight, len(deltas))):
        total = total + delta * F32(w)
        divisor = divisor + F32(w)
    if normalize and abs(divisor) >= 1e-8:
        total = total / divisor
    return add_to_base(base, total * F32(lambda_))


def add_to_base(base, merged):
    return np.where(merged == 0, base, base + merged)


def task_arithmetic(base, agents, weight=1.0, normalize=False, **options):
    return add_weighted(base, agents - base, weight, options.get("lambda", 1.0), normalize)


# --- TIES -----------------------------------------------------------------------------------------------------------


def trim(delta, density):
    """The int(density * n) largest magnitudes, at least one; among equal ones the first. The others become 0."""
    if density >= 1:
        return delta
    if density <= 0 or delta.size == 0:
        return np.zeros_like(delta)
    kept = np.argsort(-np.abs(delta), kind="stable")[: max(1, int(density * delta.size))]
    trimmed = np.zeros_like(delta)
    trimmed[kept] = delta[kept]
    return trimmed


def sign_consensus(deltas, weight, normalize, lambda_):
    weighted = [delta * F32(w) for delta, w in zip(deltas, weight)]
    elected = np.zeros_like(deltas[0])
    for row in weighted:
        elected = elected + row
    sign = np.where(elected >= 0, F32(1), F32(-1))
    merged, divisor = np.zeros_like(deltas[0]), np.zeros_like(deltas[0])
    for row, w in zip(weighted, weight):
        agrees = np.sign(row) == sign
        merged = merged + np.where(agrees, row, F32(0))
        divisor = divisor + np.where(agrees, F32(w), F32(0))
    if normalize:
        merged = merged / np.where(divisor == 0, F32(1), divisor)
    return merged * F32(lambda_)


def ties(base, agents, weight=1.0, density=1.0, normalize=True, **options):
    deltas = [trim(agent - base, share) for agent, share in zip(agents, per_agent(density, len(agents)))]
    merged = sign_consensus(deltas, per_agent(weight, len(agents)), normalize, options.get("lambda", 1.0))
    return add_to_base(base, merged)


# --- DARE -----------------------------------------------------------------------------------------------------------


def random_mask(seed, tensor, agent, elements, density):
    """Element e stays if the upper 53 bits of word e of the stream, as a fraction, are below the density."""
    text = seed.to_bytes(8, "little") + b"\0" + tensor.encode("utf-8") + b"\0" + agent.to_bytes(4, "little")
    key = int.from_bytes(blake2b(text).digest()[:16], "little")
    words = np.random.Philox(key=key, counter=0).random_raw(elements)
    return (words >> np.uint64(11)) * 2.0**-53 < density


def drop(delta, density, rescale, mask):
    if density >= 1:
        return delta
    masked = np.where(mask, delta, F32(0))
    if rescale == "inverse_density" and mask.any():  # a density near 0 keeps nothing, and its inverse is no float32
        return masked * F32(1 / density)
    if rescale == "l1":
        before, after = fsum(np.abs(delta).astype(float)), fsum(np.abs(masked).astype(float))
        if before >= 1e-7 and after >= 1e-7:
            return masked * F32(before / after)
    return masked


def dare_linear(
    base, agents, name, weight=1.0, density=1.0, normalize=False, rescale="l1", seed=0, **options
):  # fmt: skip
    dropped = [
        drop(agent - base, share, rescale, random_mask(seed, name, number, base.size, share))
        for number, (agent, share) in enumerate(zip(agents, per_agent(density, len(agents))))
    ]
    return add_weighted(base, dropped, weight, options.get("lambda", 1.0), normalize)


# --- SLERP ----------------------------------------------------------------------------------------------------------


def cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    norms = [sqrt(fsum(x * x)) for x in (a, b)]
    norms = [norm if norm > 1e-8 else 1.0 for norm in norms]
    return min(max(fsum(a / norms[0] * (b / norms[1])), -1.0), 1.0)


def slerp(base, agents, t=0.5):
    """float32 where the arc is a straight line, and there to the bit; float64 on the arc itself."""
    (agent,) = agents
    angle = cosine(base, agent)
    if abs(angle) > 0.9995:
        line = base * (F32(1) - F32(t)) + agent * F32(t)
        return np.where(agent == base, base, line)
    angle = acos(angle)
    return (sin((1 - t) * angle) * base.astype(float) + sin(t * angle) * agent.astype(float)) / sin(angle)


# --- whole models ---------------------------------------------------------------------------------------------------


def merge(method, base, agents, parameters=None, *, counted=None):
    """Models of several tensors by name, in their stored types; each tensor comes out in the base's type.

    ``counted`` names the tensors that enter the counts of ram+ (all of them if None).
    """
    parameters = dict(parameters or {})
    rows = {name: np.stack([as_float32(agent[name]) for agent in agents]) for name in base}
    flat = {name: as_float32(base[name]) for name in base}
    if method in ("ram+", "arm_r_v2"):
        r, alpha = parameters.pop("r", 0.1), parameters.pop("alpha", 0.2)
        epsilon = parameters.get("epsilon", 1e-5)
        names = base if counted is None else counted
        counts = sum(count_changes(flat[name], rows[name], epsilon) for name in names)
        if method == "arm_r_v2":
            return {name: as_stored(arm_r_v2(flat[name], rows[name], counts), base[name]) for name in base}
        parameters["scales"] = ram_plus_scales(counts, r, alpha)
    function = {"ram+": ram}.get(method) or globals()[method]
    merged = {}
    for name in base:
        named = {"name": name} if method == "dare_linear" else {}
        merged[name] = as_stored(function(flat[name], rows[name], **named, **parameters), base[name])
    return merged


def as_float32(values):
    return np.ravel(values).astype(F32)


def as_stored(values, base):
    """Rounded once to the base's type. A double that float32 does not hold stays where its float32 did not change."""
    stored = values.astype(base.dtype)
    if base.dtype == np.float64 and values.dtype == F32:
        same = values.view(np.uint32) == as_float32(base).view(np.uint32)
        stored = np.where(same, np.ravel(base), stored)
    return stored.reshape(base.shape)
