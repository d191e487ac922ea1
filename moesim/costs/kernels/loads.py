"""Rows of each local expert on the busiest rank, from the name of a load as kernel benchmarks state it.

S samples, E experts, R ranks that share them, T tokens of the whole expert-parallel group.
"balanced": choice j of token i falls on expert (i + j * ceil(E / k)) mod E, one sample.
"uniform": independent draws. "power_law_A": the recipe of aiconfigurator's collector: each expert's token count drawn
from a density x^-A on [1, 0.8 T] ([0.01, 2] where T k <= E), scaled to T k, at most T an expert, what is above it
handed to the experts with the fewest tokens, every rank in turn; the rank with the most tokens is timed. With "_eplb"
behind, experts are then dealt to the ranks greedily, the largest first.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError, UserError
from moesim.randomness import Streams

Floats = NDArray[np.float64]

SAMPLES = 16
_POWER_LAW = re.compile(r"power[-_ ]?law[-_ ]?([0-9]*\.?[0-9]+)([-_ ]eplb)?\Z")
_BALANCED = {"balanced", "equal", "perfect"}
_UNIFORM = {"uniform", "random"}
_KNOWN = ("balanced", "uniform", "power_law_1.01", "power_law_1.2", "power_law_1.01_eplb")


def expert_rows(
    load: str, tokens: int, top_k: int, experts: int, expert_parallel: int, seed: int = 0, samples: int = SAMPLES
) -> Floats:
    """Rows [S, E / R] of each expert of the busiest rank, S draws of the load; shared, not to be changed.

    Raises `UserError` where the counts make no layer, `UnknownNameError` for a load of another name.
    """
    if min(tokens, top_k, experts, expert_parallel, samples) < 1 or top_k > experts or expert_parallel > experts:
        raise UserError(
            f"no expert layer has tokens {tokens}, top_k {top_k}, experts {experts}, expert_parallel {expert_parallel}"
        )
    name = str(load).strip().lower()
    return _rows(name, int(tokens), int(top_k), int(experts), (int(expert_parallel), seed, samples))


def is_known(load: str) -> bool:
    """Whether `expert_rows` knows a load of that name."""
    name = load.strip().lower()
    return name in _BALANCED | _UNIFORM or _POWER_LAW.match(name) is not None


@lru_cache(maxsize=4096)
def _rows(load: str, tokens: int, top_k: int, experts: int, how: tuple[int, int, int]) -> Floats:
    ranks, seed, samples = how
    match = _POWER_LAW.match(load)
    if load in _BALANCED:
        counts = _balanced(tokens, top_k, experts)
    else:
        stream = Streams(seed).generator(f"kernels/{load}/{tokens}/{top_k}/{experts}/{ranks}")
        if load in _UNIFORM:
            counts = stream.multinomial(tokens * top_k, np.full(experts, 1 / experts), size=samples).astype(np.float64)
        elif match:
            counts = _power_law(float(match[1]), tokens, top_k, stream.random((samples, experts)))
        else:
            raise UnknownNameError("load", load, _KNOWN)
    dealt = bool(match and match[2])
    apart = ranks if experts % ranks == 0 and not dealt else 1
    whole = _fitted(counts, tokens, top_k, apart).reshape(samples if load not in _BALANCED else 1, experts)
    rows = _busiest(_dealt(whole, ranks) if dealt else spread_out(whole, ranks))
    rows.setflags(write=False)
    return rows


def busiest_rows(expected: Floats, ranks: int) -> Floats:
    """Rows [S, ceil(E / R)] of the busiest rank, contiguous experts a rank, where experts get `expected` [S, E]."""
    return _busiest(spread_out(expected, ranks))


def spread_out(counts: Floats, ranks: int) -> Floats:
    """Tokens [S, R, ceil(E / R)] of contiguous experts by rank; where they do not divide, some ranks have one more and
    the others an idle place."""
    samples, experts = counts.shape
    local = -(-experts // ranks)
    places = np.zeros((samples, ranks, local))
    rank = np.arange(experts) * ranks // experts
    first = np.searchsorted(rank, np.arange(ranks))
    places[:, rank, np.arange(experts) - first[rank]] = counts
    return places


def _balanced(tokens: int, top_k: int, experts: int) -> Floats:
    """Tokens of each expert [1, E]."""
    stride = math.ceil(experts / top_k)
    token = np.arange(tokens, dtype=np.float64)[:, None]
    spread = token if tokens >= stride else token * stride / tokens
    chosen = (spread + np.arange(top_k) * stride).astype(np.int64) % experts
    return np.bincount(chosen.ravel(), minlength=experts).astype(np.float64)[None]


def _power_law(alpha: float, tokens: int, top_k: int, uniform: Floats) -> Floats:
    """Wished tokens [S, E], rounded; they may exceed T, and their sum T k by the rounding."""
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > uniform.shape[-1] else (0.01, 2.0)
    if abs(alpha - 1.0) < 1e-6:
        drawn = low * (high / low) ** uniform
    else:
        power = 1.0 - alpha
        drawn = ((high**power - low**power) * uniform + low**power) ** (1.0 / power)
    wished: Floats = np.rint(drawn / drawn.sum(axis=-1, keepdims=True) * (tokens * top_k))
    return wished


def _fitted(counts: Floats, tokens: int, top_k: int, ranks: int) -> Floats:
    """Tokens [S, R, E / R], at most T an expert and T k in all; each rank takes an equal part of what is moved."""
    samples, experts = counts.shape
    local = experts // ranks
    counts = np.minimum(counts, tokens).reshape(samples, ranks, local)
    for _ in range(ranks):
        missing = tokens * top_k - counts.sum(axis=(1, 2))
        if np.all(np.abs(missing) < 0.5):
            break
        target = np.clip(counts.sum(axis=2) + missing[:, None] / ranks, 0.0, float(local * tokens))
        counts = _levelled(counts, target, float(tokens))
    return counts


def _levelled(counts: Floats, target: Floats, most: float) -> Floats:
    """`counts` [S, R, E / R] with rank sums `target` [S, R]: the emptiest filled or the fullest emptied."""
    rising = (target >= counts.sum(axis=2))[..., None]
    low, high = np.zeros((*target.shape, 1)), np.full((*target.shape, 1), most)
    for _ in range(40):
        level = (low + high) / 2
        reached = np.where(rising, np.maximum(counts, level), np.minimum(counts, level)).sum(axis=2, keepdims=True)
        below = reached < target[..., None]
        low, high = np.where(below, level, low), np.where(below, high, level)
    result: Floats = np.where(rising, np.maximum(counts, high), np.minimum(counts, high))
    return result


def _dealt(counts: Floats, ranks: int) -> Floats:
    """Tokens [S, R, E / R]: experts dealt to ranks by falling load, each to the emptiest rank with a free place."""
    samples, experts = counts.shape
    local = -(-experts // ranks)
    dealt = np.zeros((samples, ranks, local))
    for sample, row in enumerate(np.sort(counts, axis=-1)[:, ::-1]):
        filled, sums = np.zeros(ranks, dtype=np.int64), np.zeros(ranks)
        for load in row:
            rank = int(np.where(filled < local, sums, np.inf).argmin())
            dealt[sample, rank, filled[rank]] = load
            filled[rank] += 1
            sums[rank] += load
    return dealt


def _busiest(counts: Floats) -> Floats:
    chosen = counts.sum(axis=2).argmax(axis=1)
    busiest: Floats = counts[np.arange(len(counts)), chosen]
    return busiest
