"""What a router decides: the experts of each token, best first, and the weight of each in the token's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_EXPERT = -1


@dataclass(frozen=True)
class Assignment:
    """Choices of T tokens: `experts` [T, K], distinct in each row and best first, and their `weights` [T, K].

    Where a token has fewer than K experts its row ends in `NO_EXPERT` with weight 0. A soft mixture's rows are slots
    instead of tokens: T is then the experts' slots together, and K is 1.
    """

    experts: NDArray[np.int64]
    weights: NDArray[np.float32]
