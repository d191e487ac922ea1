"""Error statistics of predictions: how far, to which side, and whether in the right order.

Relative error = predicted / measured - 1. Bias = exp(mean of log(predicted / measured)) - 1: errors of a factor two to
either side cancel. Rank correlation is Spearman's, ties at their mean rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Stats = dict[str, float | int | None]

STATISTICS = ("n", "median_ape", "mean_ape", "p90_ape", "bias", "rank_correlation")


def statistics(measured: Sequence[float], predicted: Sequence[float]) -> Stats:
    """The statistics of pairs; None where there are too few to tell, or a value is 0."""
    told, said = np.asarray(measured, float), np.asarray(predicted, float)
    use = (told > 0) & np.isfinite(said)
    told, said = told[use], said[use]
    if not told.size:
        return {"n": 0, **dict.fromkeys(STATISTICS[1:])}
    error = np.abs(said / told - 1.0)
    ratio = np.log(np.where(said > 0, said, np.nan) / told)
    bias = float(np.expm1(ratio.mean())) if np.isfinite(ratio).all() else None
    return {
        "n": int(told.size),
        "median_ape": float(np.median(error)),
        "mean_ape": float(error.mean()),
        "p90_ape": float(np.quantile(error, 0.9)),
        "bias": bias,
        "rank_correlation": spearman(told, said),
    }


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs, or where one side is all alike."""
    one, two = ranks(first), ranks(second)
    if one.size < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    return float(np.corrcoef(one, two)[0, 1])


def ranks(values: ArrayLike) -> Floats:
    """Rank of each value from 0 up, equal values at their mean rank."""
    array = np.asarray(values, float)
    _, back, many = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(many)
    return np.asarray((last - (many + 1) / 2.0)[back])
