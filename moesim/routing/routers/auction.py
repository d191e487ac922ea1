"""Balanced assignment: every token one expert, every expert the same number of tokens, the highest sum of scores.

T tokens, E experts. Small problems go to scipy's linear assignment, large ones through an auction (Bertsekas; the
variant with experts that hold many tokens is that of fairseq's balanced_assignment).
"""

from __future__ import annotations

import numpy as np

from moesim.routing.routers.base import Floats, Integers
from moesim.routing.routers.quantile import balancing_prices

EXACT_TOKENS = 1024
"""The most tokens that are assigned exactly: a tenth of a second; time grows with their cube."""

STEP = 0.01
"""Least raise of a bid, in standard deviations of the scores: the auction ends within this of the best mean score, and
about twice this where T % E experts hold one token more, which are chosen beforehand."""

_MOST_ROUNDS = 20_000
_START_TOLERANCE = 1e-3
_NOBODY = -1


def balanced_assignment(scores: Floats, exact_tokens: int = EXACT_TOKENS) -> Integers:
    """The expert [T] of each token by `scores` [T, E]: T // E tokens an expert, and one more for T % E of them."""
    T, E = scores.shape
    if T == 0 or E == 1:
        return np.zeros(T, dtype=np.int64)
    large = exact_tokens < T
    return _auction(scores) if large else _exact(scores)


def _exact(scores: Floats) -> Integers:
    """By linear assignment to places: each expert has T // E that must be filled and one that may be.

    Rows beyond the tokens stand for the optional places that stay empty.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and few need it

    T, E = scores.shape
    must = T // E
    places = np.concatenate([np.repeat(np.arange(E), must), np.arange(E) if T % E else np.arange(0)])
    empty = np.full((max(0, places.size - T) if must else 0, places.size), np.inf)
    empty[:, E * must :] = 0.0
    row, place = linear_sum_assignment(np.concatenate([-scores[:, places], empty]))
    return np.asarray(places[place[np.argsort(row)][:T]], dtype=np.int64)


def _auction(scores: Floats) -> Integers:
    """Tokens without a place bid for their best expert, against their second best; the lowest bids lose their place.

    Prices start where the load is nearly even. Whoever is left after the last round takes the places that are free.
    """
    T, E = scores.shape
    step = STEP * float(scores.std())
    if step == 0.0:
        return np.asarray(np.arange(T) % E, dtype=np.int64)
    price = balancing_prices(scores, 1, np.zeros(E), _START_TOLERANCE)
    room = _room(scores - price)
    price = np.where(room == 0, np.inf, price)
    owner, bid = np.full(T, _NOBODY), np.zeros(T)
    for _ in range(_MOST_ROUNDS):
        free = np.flatnonzero(owner == _NOBODY)
        if free.size == 0:
            return owner
        values = scores[free] - price
        wanted = values.argmax(axis=1)
        top = np.partition(values, E - 2, axis=1)[:, E - 2 :]
        owner[free] = wanted
        bid[free] = price[wanted] + top[:, 1] - top[:, 0] + step
        touched = np.bincount(wanted, minlength=E) > 0
        _settle(np.flatnonzero(touched[owner] & (owner != _NOBODY)), owner, bid, price, room)
    left = np.flatnonzero(owner == _NOBODY)
    gaps = room - np.bincount(owner[owner != _NOBODY], minlength=E)
    owner[left] = np.repeat(np.arange(E), gaps)[: left.size]
    return owner


def _room(values: Floats) -> Integers:
    """Tokens [E] that each expert holds: T // E, and one more where most tokens would go."""
    T, E = values.shape
    room = np.full(E, T // E)
    demand = np.bincount(values.argmax(axis=1), minlength=E)
    room[np.argsort(-demand, kind="stable")[: T % E]] += 1
    return room


def _settle(held: Integers, owner: Integers, bid: Floats, price: Floats, room: Integers) -> None:
    """Lets the experts of the tokens `held` keep their highest bids, and raises the price of a full one to the lowest
    bid that it keeps; `held` are all tokens of these experts."""
    held = held[np.lexsort((-bid[held], owner[held]))]
    expert = owner[held]
    place = np.arange(held.size) - np.searchsorted(expert, expert)
    owner[held[place >= room[expert]]] = _NOBODY
    last = place == room[expert] - 1
    price[expert[last]] = bid[held[last]]
