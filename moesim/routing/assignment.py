"""What a router decides: the experts of each token, best first, and the weight of each in the token's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Assignment:
    """Choices of T tokens: `experts` [T, K], distinct in each row and best first, and their `weights` [T, K]."""

    experts: NDArray[np.int64]
    weights: NDArray[np.float32]
