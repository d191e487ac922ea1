"""Rows of each expert, and elements of each pair of ranks, for timings: drawn, and the same again from the same seed.

E experts, R ranks.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError

Ints = NDArray[np.int64]


def expert_rows(load: str, tokens: int, top_k: int, experts: int, rng: np.random.Generator) -> Ints:
    """Rows [E] of all experts of a layer that together get tokens x top_k copies, no expert more than `tokens`.

    `load`: balanced; uniform (each token draws its experts alike); power_law_ALPHA, where the *rows of an expert* have
    a density of exponent -ALPHA on [1, 0.8 tokens], or [0.01, 2] where copies are fewer than experts (aiconfigurator's
    law, no Zipf law).
    """
    if top_k > experts:
        raise UserError(f"a token cannot choose {top_k} of {experts} experts")
    if load == "balanced":
        each, left = divmod(tokens * top_k, experts)
        return (each + (np.arange(experts) < left)).astype(np.int64)
    if load == "uniform":
        return _uniform(tokens, top_k, experts, rng)
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", load)
    if not match:
        raise UserError(f"unknown load {load!r}; allowed: balanced, uniform, power_law_ALPHA")
    return _power_law(float(match[1]), tokens, top_k, experts, rng)


def busiest(rows: Ints, expert_parallel: int) -> Ints:
    """Rows of the local experts of the rank that has most, experts in order over `expert_parallel` ranks."""
    if rows.size % expert_parallel:
        raise UserError(f"{rows.size} experts do not divide over {expert_parallel} ranks")
    by_rank = rows.reshape(expert_parallel, -1)
    found: Ints = by_rank[by_rank.sum(axis=1).argmax()]
    return found


def pair_elements(load: str, ranks: int, mean: int, rng: np.random.Generator) -> Ints:
    """Elements [R, R] that each rank sends to each, rows the senders, with `mean` elements a pair on average.

    `load`: equal; log-normal SIGMA (pairs differ, independent); hot-rank FACTOR (the last rank receives FACTOR times
    the mean, the others share the rest; every rank sends as much).
    """
    word, _, number = load.partition(" ")
    if load == "equal":
        return np.full((ranks, ranks), mean, np.int64)
    value = float(number) if re.fullmatch(r"\d+(\.\d+)?", number) else -1.0
    if word == "log-normal" and value >= 0:
        share = rng.lognormal(0.0, value, (ranks, ranks))
        pairs: Ints = np.maximum(np.rint(share * mean * share.size / share.sum()), 1).astype(np.int64)
        return pairs
    if word == "hot-rank" and 1 <= value <= ranks:
        share = np.full(ranks, (ranks - value) / max(ranks - 1, 1))
        share[-1] = value
        return np.tile(np.rint(share * mean).astype(np.int64), (ranks, 1))
    raise UserError(f"unknown load {load!r} of {ranks} ranks; allowed: equal, log-normal SIGMA, hot-rank FACTOR")


def received_imbalance(pairs: Ints) -> float:
    """What the busiest rank receives over the mean."""
    received = pairs.sum(axis=0)
    return float(received.max() / received.mean())


def _uniform(tokens: int, top_k: int, experts: int, rng: np.random.Generator) -> Ints:
    """Counts of `tokens` draws of top_k experts without replacement, in blocks that need little memory."""
    counts = np.zeros(experts, np.int64)
    block = max(1, (1 << 22) // experts)
    for start in range(0, tokens, block):
        size = min(block, tokens - start)
        chosen = np.argpartition(rng.random((size, experts)), top_k - 1, axis=1)[:, :top_k]
        counts += np.bincount(chosen.ravel(), minlength=experts)
    return counts


def _power_law(alpha: float, tokens: int, top_k: int, experts: int, rng: np.random.Generator) -> Ints:
    low, high = (1.0, max(0.8 * tokens, 1.0)) if tokens * top_k > experts else (0.01, 2.0)
    u = rng.random(experts)
    if abs(alpha - 1.0) < 1e-9:
        x = low * (high / low) ** u
    else:
        power = 1.0 - alpha
        x = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    return _whole(x / x.sum() * tokens * top_k, tokens, tokens * top_k)


def _whole(shares: NDArray[np.float64], most: int, total: int) -> Ints:
    """Whole numbers near `shares`, each at most `most`, with sum `total` (which is at most `most` x their number)."""
    rows = np.minimum(np.floor(shares).astype(np.int64), most)
    while (left := total - int(rows.sum())) > 0:
        # What overflows goes to those with room, the largest remainder first.
        open_ = np.flatnonzero(rows < most)
        order = open_[np.argsort(-(shares[open_] - rows[open_]), kind="stable")]
        rows[order[:left]] += 1
        if left > order.size:
            more = np.minimum(most - rows[open_], (left - order.size) // open_.size)
            rows[open_] += more
    return rows
