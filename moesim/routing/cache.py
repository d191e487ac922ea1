"""Experts in a small fast memory: which share of what is wanted is found there.

E experts, S microbatches in a row; `...` are ranks, layers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keep = Literal["recent", "popular"]
BISECTIONS = 60


def expected_hits(wanted: Floats, resident: int, keep: Keep) -> Floats:
    """Chance [..., E] that an expert is held when it is wanted, each with probability `wanted` [..., E] at a time.

    "recent": a cache that evicts what was not used for longest, by its characteristic time t, sum over experts of
    1 - (1 - q)^t = C (Che, Tung, Wang 2002: exp(-q t) there); "popular": the C most wanted ones.
    """
    experts = wanted.shape[-1]
    if resident >= experts:
        return np.ones_like(wanted)
    if keep == "popular":
        place = np.argsort(np.argsort(-wanted, axis=-1, kind="stable"), axis=-1, kind="stable")
        return np.asarray(place < resident, np.float64)
    log_miss = np.log1p(-np.clip(wanted, 0.0, 1.0 - 1e-12))
    low, high = np.zeros((*wanted.shape[:-1], 1)), np.full((*wanted.shape[:-1], 1), 1e12)
    for _ in range(BISECTIONS):
        middle = np.sqrt(np.maximum(low, 1e-6) * high)
        full = -np.expm1(middle * log_miss).sum(axis=-1, keepdims=True) > resident
        low, high = np.where(full, low, middle), np.where(full, middle, high)
    return np.asarray(-np.expm1(high * log_miss))


def missed(wanted: NDArray[np.bool_], resident: int, keep: Keep) -> Floats:
    """Experts fetched [S, ...] in S microbatches, one after the other, that want `wanted` [S, ..., E].

    Experts at hand are computed first. "recent" starts from the cache that the last of the microbatches leaves, so
    that the beginning does not count; "popular" holds those wanted in most of the microbatches.
    """
    experts = wanted.shape[-1]
    if resident >= experts:
        return np.zeros(wanted.shape[:-1])
    if keep == "popular":
        often = wanted.mean(axis=0, keepdims=True)
        return np.asarray((wanted & (expected_hits(often, resident, keep) == 0.0)).sum(axis=-1), np.float64)
    last = np.zeros(wanted.shape[1:]) - np.arange(experts)
    fetched = np.empty(wanted.shape[:-1])
    for turn in range(2 * len(wanted)):
        now = wanted[turn % len(wanted)]
        newest = np.argsort(np.argsort(-last, axis=-1, kind="stable"), axis=-1, kind="stable")
        held = newest < resident
        fetched[turn % len(wanted)] = (now & ~held).sum(axis=-1)
        # Those fetched come after those at hand, and so are the newest.
        last = np.where(now, (turn + 1) * 2.0 * experts + np.where(held, 0, experts) + np.arange(experts) / 2, last)
    return fetched
