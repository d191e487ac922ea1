"""The compiled road through a cache of experts: how far back each expert was used last, token by token.

T tokens, K choices, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import compiled


@compiled
def stack_distances(choices: NDArray[np.uint16], experts: int) -> NDArray[np.int64]:
    """How many choices [T, K] found n other experts used since their expert was used last [E+1]; E: never before.

    A cache of C experts that evicts the one not used for longest holds the expert where n < C (Mattson et al. 1970).
    """
    found = np.zeros(experts + 1, np.int64)
    stack = np.empty(experts, np.int64)
    held = 0
    for t in range(choices.shape[0]):
        for k in range(choices.shape[1]):
            e = np.int64(choices[t, k])
            if e < experts:
                place = 0
                while place < held and stack[place] != e:
                    place += 1
                if place == held:
                    found[experts] += 1
                    held += 1
                else:
                    found[place] += 1
                for i in range(place, 0, -1):
                    stack[i] = stack[i - 1]
                stack[0] = e
    return found
