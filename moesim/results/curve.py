"""Metrics over one input: a point a value, with the metrics there or why there is no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moesim.provenance import Quantity

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Point:
    """The metrics at one value of the input; `why` says what stands in the way where there are none."""

    at: float
    metrics: Mapping[str, Quantity] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Curve:
    """Points in ascending order; `label`: the input in words; `here`: its value in the scenario, None where it has
    none; `note`: what the reader should know."""

    label: str
    points: tuple[Point, ...]
    here: float | None = None
    note: str = ""

    def answered(self, metric: str) -> list[tuple[float, Quantity]]:
        """(value, metric) of the points that have the metric."""
        return [(point.at, point.metrics[metric]) for point in self.points if metric in point.metrics]

    def frame(self) -> pd.DataFrame:
        """One row a (value, metric), and one for each value without an answer."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for point in self.points:
            for name, quantity in point.metrics.items():
                rows.append({self.label: point.at, "metric": name, **quantity.as_dict(), "why": ""})
            if point.why:
                rows.append({self.label: point.at, "metric": "", "why": point.why})
        return pd.DataFrame(rows)
