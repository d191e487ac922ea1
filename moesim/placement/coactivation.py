"""Experts that tokens choose together, held together: fewer domains a token is sent to, then fewer ranks.

How many tokens reach a place follows from how many chose each of its experts (S1, summed) and both of each pair (S2,
summed) by the bound of Dawson and Sankoff (Proc. Amer. Math. Soc. 18, 1967): S1 - S2 where no token has more than two
experts there, and less for every further pair, as a third expert in the same place saves less than its two pairs say.
What is packed starts from the load alone and from affinity alone, and pairs of experts change places while tokens then
reach fewer places; a place above its limit of load is mended before anything else. The idea is that of ExFlow
(arXiv:2401.08383) and of TensorRT-LLM's `generate_eplb_config_cooccurrence.py`.

T tokens, L layers, K choices, E experts, D packs (domains, or ranks of a domain), P slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement.packing import pack_no_worse, pack_weights

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 0.05
_MOST_ROUNDS = 8
_NEGLIGIBLE = 1e-9
# this part of the limit, in load above it, weighs as much as all tokens together
_WORTH = 1e-3


class Items(NamedTuple):
    """What is packed: tokens that chose each [E], both of a pair [E, E] (0 on the diagonal), and loads [E]."""

    tokens: Floats
    pairs: Floats
    loads: Floats

    def joined(self, packs: Integers) -> Items:
        """Each pack of them [D, m] as one."""
        inside = np.zeros((len(self.loads), len(packs)))
        inside[packs, np.arange(len(packs))[:, None]] = 1.0
        pairs = inside.T @ self.pairs @ inside
        return Items(self.tokens @ inside, pairs - np.diag(np.diagonal(pairs)), self.loads @ inside)

    def reached(self, packs: Integers) -> float:
        """How many packs [D, m] tokens reach, all tokens together."""
        blocks = self.pairs[packs[:, :, None], packs[:, None, :]]
        return float(reached(self.tokens[packs].sum(axis=1), 0.5 * blocks.sum(axis=(1, 2))).sum())


def pair_counts(choices: NDArray[np.integer], experts: int) -> Floats:
    """Tokens that chose both experts of a pair [L, E, E], on the diagonal those that chose the expert, of choices
    [T, L, K], names from E upwards left out."""
    layers, top_k = choices.shape[1:]
    together = np.zeros((layers, experts, experts))
    for layer in range(layers):
        chosen = np.minimum(choices[:, layer], experts).astype(np.int64)
        for first in range(top_k):
            keys = chosen[:, first, None] * (experts + 1) + chosen[:, first + 1 :]
            found = np.bincount(keys.ravel(), minlength=(experts + 1) ** 2).reshape(experts + 1, -1)
            together[layer] += found[:experts, :experts]
        together[layer] += together[layer].T
        np.fill_diagonal(together[layer], np.bincount(chosen.ravel(), minlength=experts)[:experts])
    return together


def reached(tokens: Floats, pairs: Floats) -> Floats:
    """Tokens that reach a place, at the least, of those that chose each of its experts (their sum) and both of each
    pair (their sum); any shapes that broadcast."""
    many = np.maximum(tokens, np.finfo(float).tiny)
    most = 1.0 + np.floor(2.0 * np.maximum(pairs, 0.0) / many)
    return np.asarray(2.0 * (tokens - pairs / most) / (most + 1.0))


def keep_together(
    pairs: Floats, loads: NDArray[np.number], ranks: int, domains: int, tolerance: float = TOLERANCE
) -> Integers:
    """Expert of each slot [L, P] by `pair_counts` [L, E, E]: domains of experts chosen together, in each its ranks.

    No rank gets more than 1 + `tolerance` times what the busiest of a packing by load alone gets.
    """
    loads = np.asarray(loads, np.float64)
    packed = pack_no_worse(loads, ranks)
    limits = (1.0 + tolerance) * pack_weights(loads, packed).max(axis=-1)
    found = np.empty(loads.shape, np.int64)
    for layer, (together, load, by_load, limit) in enumerate(zip(pairs, loads, packed, limits, strict=True)):
        tokens = np.diagonal(together)
        items = Items(tokens, together - np.diag(tokens), load)
        whole = items.joined(by_load)
        grouped = _improved(whole, _grown(whole, domains), Limit(np.inf, ranks // domains))
        starts = (by_load[grouped], _grown(items, domains).reshape(domains, ranks // domains, -1))
        plans = [_settled(items, start, float(limit)) for start in starts]
        found[layer] = min(plans, key=lambda plan: _merit(items, plan, float(limit))).ravel()
    return found


class Limit(NamedTuple):
    """The most `load` that the items of a rank may have, of which `slots` stand together in a pack."""

    load: float
    slots: int


def _settled(items: Items, plan: Integers, most: float) -> Integers:
    """A plan [D, R/D, slots] once no swap helps, between domains for fewer domains or in one for fewer ranks."""
    domains, _, slots = plan.shape
    limit = Limit(most, slots)
    for _ in range(_MOST_ROUNDS):
        between = _improved(items, plan.reshape(domains, -1), limit).reshape(plan.shape)
        after = np.array([_improved(items, inside, limit) for inside in between])
        if np.array_equal(after, plan):
            break
        plan = after
    return plan


def _merit(items: Items, plan: Integers, most: float) -> tuple[float, float, float]:
    """What makes a plan the better one, the less of each in turn: load above the limit, domains and ranks reached."""
    by_rank = plan.reshape(-1, plan.shape[-1])
    over = np.maximum(items.loads[by_rank].sum(axis=1) - most * (1.0 + _NEGLIGIBLE), 0.0).sum()
    return float(over), items.reached(plan.reshape(len(plan), -1)), items.reached(by_rank)


def _grown(items: Items, packs: int) -> Integers:
    """Packs [D, m] filled one after the other: the busiest item left, then what is chosen most with those inside."""
    many = len(items.loads)
    free = np.ones(many, np.bool_)
    found = np.empty((packs, many // packs), np.int64)
    for pack in found:
        attached = items.loads
        for place in range(len(pack)):
            pack[place] = np.argmax(np.where(free, attached, -np.inf))
            free[pack[place]] = False
            attached = items.pairs[pack[: place + 1]].sum(axis=0)
    return found


def _improved(items: Items, start: Integers, limit: Limit) -> Integers:
    """The packs [D, m] once no swap between two of them helps."""
    packs = start.copy()
    enough = _NEGLIGIBLE * (float(items.tokens.sum()) + 1.0)
    for _ in range(_MOST_ROUNDS):
        before = packs.copy()
        for first in range(len(packs)):
            for second in range(first + 1, len(packs)):
                _exchange(items, packs[first], packs[second], limit, enough)
        if np.array_equal(before, packs):
            break
    return packs


def _exchange(items: Items, first: Integers, second: Integers, limit: Limit, enough: float) -> None:
    """Swaps items of two packs [m], in place, the best swap first, while that brings `enough`."""
    for _ in range(len(first) + len(second)):
        gain = _gains(items, first, second, limit)
        here, there = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[here, there] <= enough:
            return
        first[here], second[there] = second[there], first[here]


def _gains(items: Items, first: Integers, second: Integers, limit: Limit) -> Floats:
    """What swapping each item of a pack with each of another brings [m, m]: tokens that reach one pack less, and load
    of a rank above the limit that is relieved, which goes first."""
    across = items.pairs[np.ix_(first, second)]
    there = _brought(items, second, first, across.T, limit)
    return _brought(items, first, second, across, limit) + there.T


def _brought(items: Items, pack: Integers, other: Integers, across: Floats, limit: Limit) -> Floats:
    """What a pack gains when each of its items (rows) leaves for each of another pack (columns) [m, m]."""
    own = items.pairs[np.ix_(pack, pack)].sum(axis=1)
    tokens, pairs = items.tokens[pack].sum(), 0.5 * own.sum()
    tokens_after = tokens - items.tokens[pack, None] + items.tokens[other]
    pairs_after = pairs - own[:, None] + across.sum(axis=0) - across
    fewer = reached(tokens, pairs) - reached(tokens_after, pairs_after)
    if np.isinf(limit.load):
        return np.asarray(fewer)
    load = np.repeat(items.loads[pack].reshape(-1, limit.slots).sum(axis=1), limit.slots)[:, None]
    load_after = load - items.loads[pack, None] + items.loads[other]
    relief = np.maximum(load - limit.load, 0.0) - np.maximum(load_after - limit.load, 0.0)
    price = (float(items.tokens.sum()) + 1.0) / max(_WORTH * limit.load, np.finfo(float).tiny)
    return np.asarray(fewer + price * relief)
