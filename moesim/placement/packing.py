"""Balanced packing: things of unequal weight into packs of equally many, no pack much heavier than another.

L layers, n things, b packs, m = n/b things a pack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def pack(weights: NDArray[np.number], packs: int) -> Integers:
    """The things of each pack [L, b, m], by weights [L, n]: heaviest first, each to the lightest pack with room.

    It is the longest-processing-time rule with a bound on the number, as in DeepSeek's EPLB (`balanced_packing`); the
    things of a pack stand in the order in which they came. Raises `UserError` where b does not divide n.
    """
    weights = np.asarray(weights, np.float64)
    layers, things = weights.shape
    if packs < 1 or things % packs:
        raise UserError(f"{things} things cannot be packed evenly into {packs} packs")
    room = things // packs
    order = np.argsort(-weights, axis=-1, kind="stable")
    row = np.arange(layers)
    heavy, filled = np.zeros((layers, packs)), np.zeros((layers, packs), np.int64)
    found = np.empty((layers, packs, room), np.int64)
    for thing in order.T:
        chosen = np.argmin(np.where(filled < room, heavy, np.inf), axis=-1)
        found[row, chosen, filled[row, chosen]] = thing
        filled[row, chosen] += 1
        heavy[row, chosen] += weights[row, thing]
    return found


def pack_weights(weights: NDArray[np.number], packed: Integers) -> Floats:
    """Weight of each pack [L, b], of weights [L, n] packed as [L, b, m]."""
    flat = np.take_along_axis(np.asarray(weights, np.float64), packed.reshape(len(packed), -1), axis=-1)
    return np.asarray(flat.reshape(packed.shape).sum(axis=-1))


def pack_no_worse(weights: NDArray[np.number], packs: int) -> Integers:
    """`pack`, and in layers where that leaves a pack heavier than the given order would, the given order [L, b, m].

    The rule is a good one, and not always: cut off from the lightest pack by its number, the last things may pile up.
    """
    greedy = pack(weights, packs)
    given = np.broadcast_to(np.arange(weights.shape[-1], dtype=np.int64).reshape(packs, -1), greedy.shape)
    better = pack_weights(weights, greedy).max(axis=-1) < pack_weights(weights, given).max(axis=-1)
    return np.where(better[:, None, None], greedy, given)
