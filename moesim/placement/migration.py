"""What moves when a placement changes: as little as the new plan allows, from the nearest rank that holds it.

A plan says which experts stand together; which rank is which is free, inside a domain always, across domains where the
strategy does not care for domains. `relabelled` names the ranks so that least moves, an expert fetched from another
domain counting as ten fetched in its own: the linear assignment problem, by scipy, for each layer. Two replicas on one
rank, or an expert that only changes its slot there, cost no transfer: a copy in GPU memory is free beside a link.

L layers, R ranks, E experts, D domains, m missing copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NEAR = 0.1
"""What an expert from the own domain counts beside one from another."""


@dataclass(frozen=True)
class Moves:
    """Experts [L, R, R] that go from a rank (row) to another (column) in each layer; nothing on the diagonal."""

    experts: Floats

    @property
    def total(self) -> float:
        """All of them."""
        return float(self.experts.sum())

    @property
    def most_arriving(self) -> float:
        """The most that come to one rank in one layer: what is staged where layers follow each other."""
        return float(self.experts.sum(axis=1).max(initial=0.0))


def held(expert_of_slot: Integers, experts: int) -> NDArray[np.bool_]:
    """Whether each rank holds each expert [L, R, E] in a placement [L, R, slots]."""
    found = np.zeros((*expert_of_slot.shape[:2], experts), np.bool_)
    np.put_along_axis(found, expert_of_slot, True, axis=-1)
    return found


def moves(before: Integers, after: Integers, experts: int, ranks_per_domain: int) -> Moves:
    """What goes where between two placements [L, R, slots]: what a rank holds already stays, the rest comes from its
    own domain where that holds it, and from several holders in turn."""
    had, layers, ranks = held(before, experts), len(before), before.shape[1]
    layer, target, expert = np.nonzero(held(after, experts) & ~had)
    holders = had[layer, :, expert]
    near = holders & (np.arange(ranks) // ranks_per_domain == (target // ranks_per_domain)[:, None])
    fit = np.where(near.any(axis=1, keepdims=True), near, holders)
    # The holder whose turn it is: the n-th of those that fit, n by the target's own number.
    turn = target % np.maximum(fit.sum(axis=1), 1)
    source = np.argmax(np.cumsum(fit, axis=1) > turn[:, None], axis=1)
    flat = np.bincount((layer * ranks + source) * ranks + target, minlength=layers * ranks * ranks)
    return Moves(flat.reshape(layers, ranks, ranks).astype(np.float64))


def relabelled(before: Integers, after: Integers, experts: int, ranks_per_domain: int, free: bool) -> Integers:
    """The placement `after` [L, R, slots] with its ranks named so that least moves from `before`.

    `free`: any rank of the plan may become any other; otherwise domains stay together, and change places as a whole.
    """
    had, wanted = held(before, experts).astype(np.float32), held(after, experts).astype(np.float32)
    layers, ranks = had.shape[:2]
    domain = np.arange(ranks) // ranks_per_domain
    starts = np.arange(0, ranks, ranks_per_domain)
    by_domain = np.maximum.reduceat(had, starts, axis=1)
    # [L, rank of the plan, rank or domain]: how many experts both hold
    here = wanted @ np.ascontiguousarray(np.swapaxes(had, 1, 2))
    near = (wanted @ np.ascontiguousarray(np.swapaxes(by_domain, 1, 2)))[..., domain]
    # what would have to be fetched, were this rank of the plan that rank
    cost: Floats = wanted.sum(axis=-1)[..., None] - ((1.0 - NEAR) * near + NEAR * here).astype(np.float64)
    found = np.empty_like(after)
    for index in range(layers):
        becomes = np.arange(ranks)
        name = _free(cost[index]) if free or len(starts) == 1 else _by_domain(cost[index], ranks_per_domain)
        if cost[index][becomes, name].sum() < cost[index][becomes, becomes].sum() - 1e-9:
            becomes = name
        found[index, becomes] = after[index]
    return found


def _free(cost: Floats) -> Integers:
    """The rank that each rank of the plan becomes [R], at least cost [R, R]."""
    return np.asarray(linear_sum_assignment(cost)[1], np.int64)


def _by_domain(cost: Floats, size: int) -> Integers:
    """The same with whole domains changing places; the last one, where it is smaller, stays."""
    ranks = len(cost)
    whole = ranks // size
    blocks = cost[: whole * size, : whole * size].reshape(whole, size, whole, size)
    # A domain's own ranks can still be named anew: what it costs at the least is each rank's best place there.
    chosen = _free(blocks.min(axis=-1).sum(axis=1))
    found = np.arange(ranks)
    for plan, place in enumerate(chosen.tolist()):
        found[plan * size : (plan + 1) * size] = place * size + _free(blocks[plan, :, place])
    if whole * size < ranks:
        rest = slice(whole * size, ranks)
        found[rest] = whole * size + _free(cost[rest, rest])
    return found
