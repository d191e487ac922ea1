"""The Pareto front: candidates that no other one beats in one respect without losing in another.

C candidates, A axes, all of them to be small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.planner.figures import Figures

Floats = NDArray[np.float64]
_BLOCK = 512

AXES = ("time to train", "cost", "memory headroom", "dropped tokens")


def axes_of(figures: Figures) -> Floats:
    """Time, cost, memory and drops [C, 4]: what `AXES` names, each to be small."""
    return np.stack([figures.run_seconds, figures.cost, figures.memory_share, figures.dropped], axis=1)


def front(values: Floats) -> NDArray[np.int64]:
    """Places of the rows of `values` [C, A] that no other row dominates, ascending; equal rows stand or fall together.

    A row dominates another that it exceeds nowhere and undercuts somewhere.
    """
    order = np.lexsort(values.T[::-1])  # a row can only be dominated by one before it
    kept = np.zeros((0, values.shape[1]))
    places: list[NDArray[np.int64]] = []
    for first in range(0, len(order), _BLOCK):
        block = order[first : first + _BLOCK]
        block = block[~_dominated(values[block], kept)]
        block = block[~_dominated(values[block], values[block])]
        kept = np.concatenate([kept, values[block]])
        places.append(block)
    return np.sort(np.concatenate(places)) if places else np.zeros(0, dtype=np.int64)


def _dominated(rows: Floats, by: Floats) -> NDArray[np.bool_]:
    """Whether any row of `by` dominates each of `rows`."""
    if not len(by) or not len(rows):
        return np.zeros(len(rows), dtype=np.bool_)
    no_worse = (by[None, :, :] <= rows[:, None, :]).all(axis=2)
    better = (by[None, :, :] < rows[:, None, :]).any(axis=2)
    return np.asarray((no_worse & better).sum(axis=1) > 0)
