"""The points of a sweep in their order: fields set to values; the first field of a grid changes slowest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.specs.sweep import Range, SweepSpec

Values = dict[str, Any]


def points_of(spec: SweepSpec) -> list[Values]:
    """What each point sets, seeds left aside."""
    if spec.list is not None:
        return [dict(point) for point in spec.list]
    if spec.random is not None:
        return drawn(spec.random, _independent(spec))
    if spec.latin_hypercube is not None:
        return drawn(spec.latin_hypercube, _spread(spec))
    grid = spec.grid or {}
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def drawn(over: Mapping[str, Range | tuple[Any, ...]], shares: NDArray[np.float64]) -> list[Values]:
    """One point a row of `shares` [points, fields], each from 0 to 1: how far a field is into its range or choices."""
    columns = [[_value(kind, share) for share in shares[:, at].tolist()] for at, kind in enumerate(over.values())]
    return [dict(zip(over, values, strict=True)) for values in zip(*columns, strict=True)]


def _value(kind: Range | tuple[Any, ...], share: float) -> Any:
    if not isinstance(kind, Range):
        return kind[min(int(share * len(kind)), len(kind) - 1)]
    low, high = kind.low, kind.high
    if not (isinstance(low, int) and isinstance(high, int)):
        return min(max(_between(low, high, share, kind.log), low), high)
    # Every whole number has its own stretch, the last one too.
    return min(max(math.floor(_between(low, high + 1, share, kind.log)), low), high)


def _between(low: float, high: float, share: float, log: bool) -> float:
    if log:
        return float(low * (high / low) ** share)
    return low + (high - low) * share


def _independent(spec: SweepSpec) -> NDArray[np.float64]:
    """A stream for each field, so that another field does not change what is drawn for this one."""
    streams, points = Streams(spec.draw_seed), spec.points or 0
    return np.stack([streams.generator(f"sweep/random/{field}").random(points) for field in spec.fields], axis=1)


def _spread(spec: SweepSpec) -> NDArray[np.float64]:
    from scipy.stats import qmc  # takes half a second, which no other sweep should wait for

    generator = Streams(spec.draw_seed).generator("sweep/latin-hypercube")
    return qmc.LatinHypercube(len(spec.fields), seed=generator).random(spec.points or 0)
