"""What is drawn for some source ranks: every token's choices, and the race in which it made them.

n source ranks, T tokens of each, K choices, E experts; W rows of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Drawn:
    """`choices` [n, T, K], best first, E for none; token t of source i drew from the positive `weights` [W, E] in row
    `row` [n, T]; `gates` [n, T, K] where the router's weights are known (else they follow from the race)."""

    choices: NDArray[np.uint16]
    weights: NDArray[np.float64]
    row: NDArray[np.int32]
    gates: NDArray[np.float32] | None = None


class Draws(Protocol):
    """Where choices come from: a simple law, a fitted one, a router's rule, or a recorded trace.

    The same (layer, sample, source rank) always gives the same choices, whatever else was asked before.
    """

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1 in one MoE layer and one routing sample."""
        ...
