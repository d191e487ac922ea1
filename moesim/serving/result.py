"""The answer about serving: the same metrics, whether simulated or estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moesim.provenance import Quantity
from moesim.results.result import Columns, Road

if TYPE_CHECKING:
    import pandas as pd

    from moesim.serving.charts import ServingCharts


@dataclass(frozen=True)
class ServingResult:
    """What one run of a serving scenario says.

    `summary`: metric name -> Quantity (names, units and meanings in `moesim.columns.SERVING`).
    `breakdown`: seconds of the mean iteration by part, by pool ("decode: experts"), weighted by the time worked.
    `memory`: bytes by part on the fullest GPU; the parts add up to `memory_per_gpu`.
    `request_columns`: one entry a request, `moesim.columns.REQUESTS`; `iteration_columns`: one entry a time bin and
    instance, `moesim.columns.ITERATIONS`; both absent on the estimate road.
    """

    name: str
    question: str
    road: Road
    scenario: dict[str, Any]
    summary: dict[str, Quantity]
    breakdown: dict[str, float]
    memory: dict[str, float]
    notes: tuple[str, ...] = ()
    request_columns: Columns | None = field(default=None, repr=False)
    iteration_columns: Columns | None = field(default=None, repr=False)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request; empty on the estimate road."""
        return _frame(self.request_columns)

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """One row a time bin and instance; empty on the estimate road."""
        return _frame(self.iteration_columns)

    @cached_property
    def charts(self) -> ServingCharts:
        """Pictures of this result (altair): `latency()`, `batch()`, `kv_cache()`, `imbalance()`, `breakdown()`,
        `memory()`."""
        from moesim.serving.charts import ServingCharts

        return ServingCharts(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything but the large tables."""
        return {
            "name": self.name,
            "question": self.question,
            "road": self.road,
            "summary": {name: quantity.as_dict() for name, quantity in self.summary.items()},
            "breakdown": self.breakdown,
            "memory": self.memory,
            "notes": list(self.notes),
            "scenario": self.scenario,
        }


def _frame(columns: Columns | None) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns if columns is not None else {})
