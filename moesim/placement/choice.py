"""Which replica of an expert a copy is sent to: as shares of a source rank's copies, as counts, and token by token.

L layers, R ranks, which are the sources too, E experts, P slots, T tokens, K choices, M replicas of an expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError, UserError
from moesim.placement.placement import Placement

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RULES = ("uniform", "nearest", "load-proportional")
_ROUNDS, _STEP = 200, 0.5
_GOLDEN = (5.0**0.5 - 1.0) / 2.0


def replica_shares(
    placement: Placement, rule: str, ranks_per_domain: int | None = None, loads: NDArray[np.number] | None = None
) -> Floats:
    """Share of a source rank's copies of an expert that go to each slot [L, R, P]; 1 over an expert's slots.

    `uniform`: all replicas alike, what EPLB's packing counts on. `nearest`: the source's own rank, else its domain
    (`ranks_per_domain` consecutive ranks; all ranks where None), else all alike. `load-proportional`: the same for all
    sources, and such that `loads` [L, E] come out as even over ranks as they can, to which a replica on a rank with
    little to do contributes more.
    """
    if rule not in RULES:
        raise UnknownNameError("replica choice", rule, RULES)
    shape = (placement.layers, placement.ranks, placement.ranks * placement.slots)
    if rule == "nearest":
        return _nearest(placement, ranks_per_domain or placement.ranks)
    share = 1.0 / np.take_along_axis(placement.replica_counts, placement.physical, axis=-1)
    if rule == "load-proportional":
        if loads is None:
            raise UserError("the replica choice load-proportional needs the experts' loads")
        share = np.array([_evened(placement, layer, loads[layer], share[layer]) for layer in range(len(share))])
    return np.broadcast_to(share[:, None, :], shape)


def split(counts: NDArray[np.number], placement: Placement, shares: Floats) -> NDArray[np.number]:
    """Copies from each source to each slot [..., L, R, P] of those to each expert [..., L, R, E], by `replica_shares`.

    Fractions for fractions; whole numbers for whole numbers: none is lost, and a source's remainders fall on other
    replicas than its neighbour's. One input always gives the same counts.
    """
    found = np.empty((*counts.shape[:-1], shares.shape[-1]), counts.dtype if counts.dtype.kind in "iu" else np.float64)
    for layer, (physical, share) in enumerate(zip(placement.physical, shares, strict=True)):
        wanted = counts[..., layer, :, :]
        if counts.dtype.kind not in "iu":
            found[..., layer, :, :] = wanted[..., physical] * share
            continue
        order = np.argsort(physical, kind="stable")
        expert = physical[order]
        below, above = _edges(share[:, order], expert)
        offset = _spread(np.arange(placement.ranks)[:, None] + placement.ranks * expert)
        copies = wanted[..., expert]
        found[..., layer, :, order] = np.moveaxis(
            np.floor(copies * above + offset) - np.floor(copies * below + offset), -1, 0
        )
    return found


def slot_of_copies(
    placement: Placement, layer: int, choices: NDArray[np.integer], source: Integers, share: Floats
) -> Integers:
    """Slot of each copy [T, K] of a layer's choices [T, K] by tokens of ranks `source` [T]; -1 where there is none.

    `share` [R, P] is the layer's of `replica_shares`; successive copies spread over replicas evenly.
    """
    there = choices < placement.experts
    expert = np.where(there, choices, 0).astype(np.int64)
    slots = placement.replica_slots[layer]
    if slots.shape[1] == 1:
        return np.where(there, slots[expert, 0], -1)
    upper = np.cumsum(np.where(slots >= 0, share[:, np.maximum(slots, 0)], 0.0), axis=-1)
    upper[..., np.arange(slots.shape[1]) >= placement.replica_counts[layer][:, None] - 1] = np.inf
    point = _spread(np.arange(choices.size).reshape(choices.shape))
    turn = (point[..., None] >= upper[source[:, None], expert]).sum(axis=-1)
    return np.where(there, slots[expert, turn], -1)


def _spread(number: NDArray[np.integer]) -> Floats:
    """Points of [0, 1) that stay evenly spread however many are taken."""
    return np.asarray((number + 0.5) * _GOLDEN % 1.0)


def _edges(share: Floats, expert: Integers) -> tuple[Floats, Floats]:
    """Where each slot's part of its expert's copies begins and ends [R, P], slots of an expert standing together."""
    first = np.append(True, expert[1:] != expert[:-1])
    last = np.append(first[1:], True)
    total = np.cumsum(share, axis=-1)
    start = np.where(first, total - share, 0.0)[:, first][:, np.cumsum(first) - 1]
    above = np.where(last, 1.0, np.clip(total - start, 0.0, 1.0))
    below = np.where(first, 0.0, np.roll(above, 1, axis=-1))
    return below, above


def _nearest(placement: Placement, ranks_per_domain: int) -> Floats:
    rank = np.repeat(np.arange(placement.ranks), placement.slots)
    source = np.arange(placement.ranks)[:, None]
    here = (rank == source).astype(np.float64)
    near = (rank // ranks_per_domain == source // ranks_per_domain).astype(np.float64)
    found = np.empty((placement.layers, placement.ranks, rank.size))
    for layer, physical in enumerate(placement.physical):
        holds = (physical[:, None] == np.arange(placement.experts)).astype(np.float64)
        at_hand, in_domain = ((mask @ holds)[:, physical] for mask in (here, near))
        all_of_them = placement.replica_counts[layer][physical]
        chosen = np.where(at_hand > 0, here, np.where(in_domain > 0, near, 1.0))
        found[layer] = chosen / np.where(at_hand > 0, at_hand, np.where(in_domain > 0, in_domain, all_of_them))
    return found


def _evened(placement: Placement, layer: int, loads: NDArray[np.number], share: Floats) -> Floats:
    """Shares [P] under which ranks are evenest: those of busy ranks shrink, step by step, and the best are kept."""
    physical = placement.physical[layer]
    if placement.redundant == 0 or not np.any(loads):
        return share
    best, least = share, np.inf
    for _ in range(_ROUNDS):
        busy = (loads[physical] * share).reshape(placement.ranks, -1).sum(axis=-1)
        if busy.max() < least:
            best, least = share, float(busy.max())
        wanted = share * np.repeat((busy.mean() / np.maximum(busy, 1e-9 * busy.mean())) ** _STEP, placement.slots)
        share = wanted / np.bincount(physical, wanted, placement.experts)[physical]
    return best
