"""The compiled sums over slots and moments of pipeline ranks.

N candidates, P pipeline ranks, K kinds of slots, V chunks a rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Floats, compiled

Ints = NDArray[np.int64]


class Kinds(NamedTuple):
    """Of each kind of slot [K]: its rank, whether it has a forward and a backward, messages that it receives."""

    stage: Ints
    forward: Floats
    backward: Floats
    received: Floats


@compiled
def fill_waits(
    kinds: Kinds, rows: Ints, ahead: Floats, back: Floats, message: Floats, shards: Floats, waits: Floats
) -> None:
    """Fills [N, K] with the seconds for which sharding's collectives, and these and messages, keep slots waiting.

    `rows` [N] of `ahead` and `back` [.., P], seconds before a forward and a backward, and of `message` [..].
    """
    for n in range(len(rows)):
        row = rows[n]
        for k in range(len(kinds.stage)):
            stage = kinds.stage[k]
            shards[n, k] = ahead[row, stage] * kinds.forward[k] + back[row, stage] * kinds.backward[k]
            waits[n, k] = shards[n, k] + message[row] * kinds.received[k]


@compiled
def sum_by_rank(stage: Ints, uses: Floats, spent: Floats, shards: Floats, waits: Floats, found: Floats) -> None:
    """Fills `found` [4, N, P] with sums over slots, as often as they occur: of their seconds and of the mean rank's
    compute in them, `spent` [2, N, K], and of both kinds of waits [N, K]."""
    found[:] = 0.0
    for n in range(len(shards)):
        for k in range(len(stage)):
            times, rank = uses[k], stage[k]
            found[0, n, rank] += times * spent[0, n, k]
            found[1, n, rank] += times * spent[1, n, k]
            found[2, n, rank] += times * shards[n, k]
            found[3, n, rank] += times * waits[n, k]


@compiled
def fullest_moments(held: Floats, edges: Ints, sizes: Floats, most: Floats) -> None:
    """The most that each rank holds at once [N, P], from moments [.., 2 V] and the bytes of each chunk [N, P, 2 V]."""
    for n in range(len(sizes)):
        for p in range(edges.size - 1):
            best = 0.0
            for m in range(edges[p], edges[p + 1]):
                total = 0.0
                for v in range(held.shape[1]):
                    total += held[m, v] * sizes[n, p, v]
                best = max(best, total)
            most[n, p] = best
