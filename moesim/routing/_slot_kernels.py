"""The compiled road from experts to slots: which replica each copy of a token goes to.

n source ranks, C copies of one, E experts, M replicas of the most replicated one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Counters, Names, compiled

GOLDEN = (5.0**0.5 - 1.0) / 2.0


@compiled
def to_slots(choices: Names, upper: NDArray[np.float64], slots: Counters, first: int, found: Names) -> None:
    """Slot of each copy [n, C] of the choices [n, C] of sources `first` and on, the number of slots for no expert.

    The turn of an expert's replica m ends at `upper` [R or 1, E, M]; a copy's point is that of its place in its source.
    """
    E, none = slots.shape[0], slots.max() + 1
    for i in range(choices.shape[0]):
        own = upper[min(first + i, upper.shape[0] - 1)]
        for c in range(choices.shape[1]):
            e = choices[i, c]
            if e >= E:
                found[i, c] = none
                continue
            m, point = 0, ((c + 0.5) * GOLDEN) % 1.0
            while point >= own[e, m]:
                m += 1
            found[i, c] = slots[e, m]
