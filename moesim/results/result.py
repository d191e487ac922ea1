"""The answer of either road: the same summary columns, whether simulated or estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.provenance import Quantity

if TYPE_CHECKING:
    import pandas as pd

    from moesim.results.charts import Charts

Road = Literal["simulate", "estimate"]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """What one run says.

    `summary`: metric name -> Quantity (names, units and meanings in `moesim.columns`).
    `breakdown`: where the step goes, seconds by part, mean over GPUs; the parts add up to `step_time`.
    `memory`: bytes by part on the fullest GPU; the parts add up to `memory_per_gpu`.
    `operation_columns`: one entry a simulated operation, `moesim.columns.OPERATIONS`; absent on the estimate road.
    `routing_columns`: one entry a (layer, sample, expert), `moesim.columns.ROUTING`.
    `traffic`: [R, R] bytes that rank r sends to rank s in one dispatch, mean over layers and samples.
    """

    name: str
    question: str
    road: Road
    scenario: dict[str, Any]
    summary: dict[str, Quantity]
    breakdown: dict[str, float]
    memory: dict[str, float]
    notes: tuple[str, ...] = ()
    operation_columns: Columns | None = field(default=None, repr=False)
    routing_columns: Columns | None = field(default=None, repr=False)
    traffic: NDArray[np.float64] | None = field(default=None, repr=False)

    def parts(self, whole: str) -> dict[str, Quantity]:
        """The parts of "step_time" or "memory_per_gpu", each with the relative range and the basis of the whole."""
        total, parts = self.summary[whole], self.breakdown if whole == "step_time" else self.memory
        share = {name: value / total.value for name, value in parts.items()}
        return {name: total.scaled(part, total.unit, f"a part of {whole}") for name, part in share.items()}

    @cached_property
    def operations(self) -> pd.DataFrame:
        """One row an operation; empty on the estimate road."""
        return _frame(self.operation_columns)

    @cached_property
    def routing(self) -> pd.DataFrame:
        """One row a (layer, sample, expert): tokens that chose it, kept and dropped."""
        return _frame(self.routing_columns)

    @cached_property
    def charts(self) -> Charts:
        """Pictures of this result (altair): `breakdown()`, `timeline()`, `expert_load()`, `traffic()`, `memory()`."""
        from moesim.results.charts import Charts

        return Charts(self)

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
