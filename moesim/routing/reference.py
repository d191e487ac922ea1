"""The plain road from weights to counts, token by token through a router: slow, short, and true by inspection.

It serves every router, and the sampler is tested against it. T tokens, E experts, K choices, P places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Router


def draw(router: Router, weights: NDArray[np.float64], tokens: int, generator: np.random.Generator) -> Assignment:
    """Route `tokens` tokens whose logits are log(weights [E]) plus Gumbel noise: draws in proportion to the weights."""
    return router.choose(np.log(weights) + generator.gumbel(size=(tokens, weights.size)))


def count_places(
    choices: NDArray[np.integer], kept: NDArray[np.bool_], place: NDArray[np.int64], places: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kept copies, and distinct tokens that have one, by place [P] of choices [T, K]; `place` [E] of each expert."""
    token, choice = np.nonzero(kept)
    where = place[choices[token, choice]]
    reached = np.unique(token * places + where) % places
    return np.bincount(where, minlength=places), np.bincount(reached, minlength=places)
