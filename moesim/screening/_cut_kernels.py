"""The compiled search for a cut: `step.balance.cut`, move by move, for planners that cut thousands of times.

K cuts, L layers, C chunks, R pipeline ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Floats, compiled

Ints = NDArray[np.int64]
EXACT = 1e6
"""Scores are compared to six decimals."""


@compiled
def score(sizes: Ints, upto: Floats, ends: Floats, rank_of: Ints, ranks: Floats, found: Floats) -> None:
    """Fills `found` [4]: work of the busiest rank, of the busiest chunk, squares over ranks and over chunks. `upto`
    [L + 1] is the work before each layer, `ends` [3] what stands before the first and behind the last, and a layer's
    mean."""
    ranks[:] = 0.0
    busiest = squares = 0.0
    place, last = 0, len(sizes) - 1
    for chunk in range(last + 1):
        work = upto[place + sizes[chunk]] - upto[place]
        place += sizes[chunk]
        if chunk == 0:
            work += ends[0]
        if chunk == last:
            work += ends[1]
        ranks[rank_of[chunk]] += work
        busiest = max(busiest, work)
        squares += work * work
    found[0], found[1], found[2], found[3] = ranks.max(), busiest, (ranks * ranks).sum(), squares
    for part in range(4):
        found[part] = np.rint(found[part] * EXACT) / EXACT


@compiled
def less(one: Floats, other: Floats) -> bool:
    """Whether a score comes before another, part by part."""
    for part in range(4):
        if one[part] != other[part]:
            return bool(one[part] < other[part])
    return False


@compiled
def deal(layers: Floats, ends: Floats, rank_of: Ints, ranks: Floats, sizes: Ints) -> None:
    """Every layer to the rank with least work, there to the chunk with least; first to chunks that may not stay empty
    where as many layers as these are left."""
    count = len(sizes)
    chunks, each = np.zeros(count), ends[2]
    sizes[:], ranks[:] = 0, 0.0
    for side in range(2):
        chunks[side * (count - 1)] += ends[side]
        ranks[rank_of[side * (count - 1)]] += ends[side]
    for place in range(len(layers)):
        empty = (sizes[1 : count - 1] == 0).sum()
        inner, best = empty > 0 and len(layers) - place <= empty, -1
        for chunk in range(count):
            if inner and not (sizes[chunk] == 0 and 0 < chunk < count - 1):
                continue
            if best >= 0:
                mine, its = ranks[rank_of[chunk]], ranks[rank_of[best]]
                if mine > its or (mine == its and chunks[chunk] >= chunks[best]):
                    continue
            best = chunk
        sizes[best] += 1
        chunks[best] += each
        ranks[rank_of[best]] += each


@compiled
def search(layers: Floats, ends: Floats, rank_of: Ints, moves: int, sizes: Ints) -> None:
    """Fills `sizes` [C] with the best cut that moving single layers leads to."""
    count = len(sizes)
    ranks, upto = np.zeros(rank_of.max() + 1), np.zeros(len(layers) + 1)
    for layer in range(len(layers)):
        upto[layer + 1] = upto[layer] + layers[layer]
    deal(layers, ends, rank_of, ranks, sizes)
    now, trial, best = np.empty(4), np.empty(4), np.empty(4)
    score(sizes, upto, ends, rank_of, ranks, now)
    for _ in range(moves):
        from_chunk, to_chunk = -1, -1
        for giver in range(count):
            if sizes[giver] <= (1 if 0 < giver < count - 1 else 0):
                continue
            for taker in range(count):
                if taker == giver:
                    continue
                sizes[giver] -= 1
                sizes[taker] += 1
                score(sizes, upto, ends, rank_of, ranks, trial)
                sizes[giver] += 1
                sizes[taker] -= 1
                if from_chunk < 0 or less(trial, best):
                    from_chunk, to_chunk = giver, taker
                    best[:] = trial
        if from_chunk < 0 or not less(best, now):
            break
        sizes[from_chunk] -= 1
        sizes[to_chunk] += 1
        now[:] = best


@compiled
def search_all(
    layers: Floats, ends: Floats, stages: Ints, counts: Ints, mirrored: Ints, moves: int, sizes: Ints
) -> None:
    """The best cuts of many: fills `sizes` [K, C] up to each one's `counts`; `layers` [K, L], `ends` [K, 3]; ranks
    that are `mirrored` hold a chunk and its mirror image, others every `stages`-th."""
    for k in range(len(counts)):
        count = counts[k]
        rank_of = np.arange(count)
        for chunk in range(count):
            rank_of[chunk] = min(chunk, count - 1 - chunk) if mirrored[k] else chunk % stages[k]
        search(layers[k], ends[k], rank_of, moves, sizes[k, :count])
