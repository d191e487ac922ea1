"""How near a law comes to measured times, and how far measurements differ among themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.measurement.columns import COLUMNS

Floats = NDArray[np.float64]

FAR = 10.0
"""Kernels so many times as long, or as short, as by the datasheet are of something else."""

# What does not make another operation of a row.
_APART = ("time", "spread", "repeats", "software", "source", "file", "row", "notify", "note", "clock", "power")


@dataclass(frozen=True)
class Residual:
    """Median, 90th percentile and median sign of predicted / measured - 1 over `rows` rows; `range`: the factor less 1
    that nine in ten measured values are within, to either side, of their prediction."""

    median: float
    p90: float
    bias: float
    rows: int
    range: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def residual(predicted: Floats, measured: Floats) -> Residual:
    """The relative misses of a law."""
    miss = predicted / measured - 1
    size = np.abs(miss)
    return Residual(
        round(float(np.median(size)), 3),
        round(float(np.quantile(size, 0.9)), 3),
        round(float(np.median(miss)), 3),
        int(measured.size),
        round(float(np.expm1(np.quantile(np.abs(np.log(predicted / measured)), 0.9))), 3),
    )


def operations(rows: pd.DataFrame) -> NDArray[np.int64]:
    """A number [n] for each row's operation: rows that differ only in release, source or run share it."""
    known = {name for columns in COLUMNS.values() for name in columns} | {"kind", "gpu", "load", "dtype"}
    words = [name for name in rows if name in known and name not in _APART]
    return np.asarray(rows.groupby(words, dropna=False, sort=False, observed=True).ngroup(), dtype=np.int64)


def weights(rows: pd.DataFrame) -> Floats:
    """A weight [n] for each row, so that an operation counts once however often it was measured."""
    number = operations(rows)
    return np.asarray(1.0 / np.bincount(number)[number])


def noise(rows: pd.DataFrame) -> dict[str, float]:
    """Median spread of repeats, and median difference of one operation between releases, where the rows tell."""
    found = {}
    if "spread" in rows and rows["spread"].notna().any():
        found["repeats"] = round(float(rows["spread"].median()), 4)
    if "software" not in rows:
        return found
    by_release = rows.assign(operation=operations(rows)).groupby(["operation", "software"], sort=True)["time"].median()
    steps = by_release.groupby(level="operation", sort=True).pct_change().dropna().abs()
    if len(steps):
        found["releases"] = round(float(steps.median()), 4)
        found["releases_p90"] = round(float(steps.quantile(0.9)), 4)
    return found


def far_off(predicted: Floats, measured: Floats, what: str) -> str:
    """Why measured seconds cannot be what the datasheet's law tells of, "" where they can."""
    times = float(np.exp(np.median(np.log(measured / predicted))))
    if 1.0 / FAR < times < FAR:
        return ""
    many = f"{times:,.0f} times as long" if times > 1.0 else f"{1.0 / times:,.0f} times as short"
    return f"{what} take {many} as by the GPU's datasheet: check their unit (seconds) and the GPU's name"
