"""The compiled tail of the normal law."""

from __future__ import annotations

import math

import numpy as np

from moesim.routing._kernels import Floats, compiled


@compiled
def tails(values: Floats, found: Floats) -> None:
    """Fills `found` [N] with the probability that a standard normal number is above each of `values` [N]."""
    for place in range(len(values)):
        found[place] = 0.5 * math.erfc(values[place] / np.sqrt(2.0))
