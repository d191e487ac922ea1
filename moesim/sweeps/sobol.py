"""Sobol indices of a function that is dear: where to ask it, and from its answers each input's share of the variance.

d inputs, N samples (a power of two), B resamples. Saltelli's design: two independent matrices A and B of N points, and
for every input A with that input's column from B: N (d + 2) answers (Saltelli et al. 2010).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams

Floats = NDArray[np.float64]

CONFIDENCE = 0.9
RESAMPLES = 999
_FLAT = 1e-9
"""A variance below this square, relative to the mean, is rounding: nothing moves the answer."""


class Index(NamedTuple):
    """A share of the variance with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2.0


def design(inputs: int, samples: int, seed: int) -> Floats:
    """Where to ask [N (d + 2), d], from 0 to 1: A, then B, then A with each input from B in turn."""
    from scipy.stats import qmc  # takes half a second, which a tornado should not wait for

    generator = Streams(seed).generator("sensitivity/sobol")
    pair = qmc.Sobol(2 * inputs, seed=generator).random(samples)
    first, second = pair[:, :inputs], pair[:, inputs:]
    mixed = np.repeat(first[None], inputs, axis=0)
    each = np.arange(inputs)
    mixed[each, :, each] = second.T
    return np.concatenate([first, second, *mixed])


def indices(answers: Floats, samples: int, seed: int) -> tuple[list[Index], list[Index]]:
    """First-order and total index of each input from the answers [N (d + 2)] at the design's points.

    Intervals are percentiles of a bootstrap over the N samples; scipy's own takes no seed.
    """
    table = np.asarray(answers, dtype=np.float64).reshape(-1, samples)
    if table.shape[0] < 4:
        raise ValueError("one input has all of the variance: two or more are needed")
    if table[:2].std() <= _FLAT * abs(table[:2].mean()):
        none = [Index(0.0, 0.0, 0.0)] * (table.shape[0] - 2)
        return none, none
    generator = Streams(seed).generator("sensitivity/bootstrap")
    found = _both(table)
    draws = [_both(table[:, generator.integers(samples, size=samples)]) for _ in range(RESAMPLES)]
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(np.stack(draws), [tail, 1.0 - tail], axis=0)
    first, total = (
        [Index(*map(float, one)) for one in zip(*rows, strict=True)] for rows in zip(found, low, high, strict=True)
    )
    return first, total


def _both(table: Floats) -> Floats:
    """First-order and total indices [2, d] of answers [d + 2, N]."""
    from scipy.stats import sobol_indices

    parts: dict[Literal["f_A", "f_B", "f_AB"], Floats]
    parts = {"f_A": table[None, 0], "f_B": table[None, 1], "f_AB": table[2:, None]}
    found = sobol_indices(func=parts, n=table.shape[1])
    return np.stack([found.first_order, found.total_order])
