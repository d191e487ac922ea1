"""A placement mended instead of made anew: experts of the busiest rank change places until it is busy enough.

A plan made from nothing is as even as can be and moves most experts; few exchanges of pairs between the busiest rank
and others come nearly as far. Replicas stay as many as they were. The exchange taken each time is the one that leaves
the busier of its two ranks with least, and it ends where none helps or the busiest rank is within the limit.

L layers, R ranks, S slots of a rank, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import counted

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def mended(expert_of_slot: Integers, loads: Floats, limit: Floats) -> Integers:
    """The placement [L, R, S] with as few exchanges as bring its busiest rank, under `loads` [L, E], to `limit` [L].

    Exchanges stay where they help, whether or not the limit is reached.
    """
    found = expert_of_slot.copy()
    layers, ranks, slots = found.shape
    flat = found.reshape(layers, -1)
    row = np.arange(layers)[:, None]
    weights = (loads / counted(flat, loads.shape[1]))[row, flat].reshape(found.shape)
    open_ = np.arange(layers)
    for _ in range(ranks * slots):
        open_ = open_[weights[open_].sum(axis=-1).max(axis=-1) > limit[open_]]
        if not open_.size:
            break
        helped, giver, place, taker = _best(weights[open_])
        open_, at = open_[helped], (giver[helped], place[helped])
        other = (taker[helped] // slots, taker[helped] % slots)
        for array in (found, weights):
            one, two = array[open_, *at].copy(), array[open_, *other].copy()
            array[open_, *at], array[open_, *other] = two, one
    return found


def _best(weights: Floats) -> tuple[NDArray[np.bool_], Integers, Integers, Integers]:
    """Of each layer's [L, R, S] exchanges with the busiest rank the best one: whether it helps [L], that rank, its
    slot, and the other slot counted through all ranks."""
    layers, ranks, slots = weights.shape
    row, busy = np.arange(layers), weights.sum(axis=-1)
    giver = busy.argmax(axis=-1)
    less = weights[row, giver][:, :, None] - weights.reshape(layers, 1, -1)
    taken = np.repeat(busy, slots, axis=-1)[:, None, :] + less
    left = busy[row, giver][:, None, None] - less
    worse = np.maximum(taken, left)
    own = np.repeat(np.arange(ranks) == giver[:, None], slots, axis=-1)
    worse = np.where(own[:, None, :], np.inf, worse).reshape(layers, -1)
    best = worse.argmin(axis=-1)
    helped = worse[row, best] < busy[row, giver] * (1.0 - 1e-12)
    return helped, giver, best // (ranks * slots), best % (ranks * slots)
