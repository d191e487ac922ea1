"""The answered candidates of a plan as one table: what each sets, and its figures with their ranges."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moesim.planner.defaults import DAY
from moesim.planner.plan import ModelPlan, Row

METRICS = ("step_time", "training_time", "cost", "gpu_hours", "fits_in_memory", "dropped_token_fraction")


def rows_frame(model: ModelPlan) -> pd.DataFrame:
    """One line a row, best first; the closest one where nothing keeps the limits. Figures in SI, and `days`."""
    rows = model.rows or ((model.closest,) if model.closest else ())
    return pd.DataFrame([_line(row) for row in rows])


def _line(row: Row) -> dict[str, Any]:
    layout = {name: "+".join(value) if isinstance(value, list) else value for name, value in row.layout.items()}
    layout["routing.capacity"] = str(layout["routing.capacity"])
    line: dict[str, Any] = {"name": row.scenario.name, "road": row.road, "pareto": row.pareto, **layout}
    for name in METRICS:
        if name in row.summary:
            quantity = row.summary[name]
            line |= {name: quantity.value, f"{name}_low": quantity.low, f"{name}_high": quantity.high}
    return {**line, "days": row.summary["training_time"].value / DAY, "breaks": ", ".join(row.over)}
