"""Pictures of a plan: time to train against cost, with the Pareto front."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
from altair.typing import ChartType
from numpy.typing import NDArray

from moesim.planner.defaults import DAY
from moesim.planner.plan import ModelPlan
from moesim.planner.serving_plan import ServingModelPlan
from moesim.results import chart_style as style
from moesim.results.chart_style import WIDTH
from moesim.units import show

MOST_POINTS = 3000
"""Candidates drawn: all of the front, and the best of the others."""
PICKED = "picked"
"""The chart's selection: a click on a point picks the candidate, as its `place` in the plan's table."""


def pareto(model: ModelPlan) -> ChartType:
    """Candidates that keep all limits, time against cost by GPU; the large points are the front of the screening in
    time, cost, memory headroom and drops."""
    table = model.table
    able = np.flatnonzero(table["bound_by"] == "")
    edge = table["pareto"][able]
    places = np.concatenate([able[edge], able[~edge][: max(0, MOST_POINTS - int(edge.sum()))]])
    priced = bool(model.rows) and "cost" in model.rows[0].summary
    hardware = [f"{gpus:,} {gpu}" for gpu, gpus in zip(table["gpu"][places], table["gpus"][places], strict=True)]
    data = style.rows(
        place=places,
        days=table["training_time"][places] / DAY,
        cost=table["cost"][places],
        gpu=table["gpu"][places],
        hardware=hardware,
        front=["front" if one else "other" for one in table["pareto"][places]],
        memory=[show(float(share), "fraction") for share in table["fits_in_memory"][places]],
        layout=[
            f"tensor {table['tensor'][at]}, pipeline {table['pipeline'][at]} x {table['virtual_pipeline'][at]},"
            f" expert {table['expert'][at]}, micro-batch {table['micro_batch'][at]}"
            for at in places
        ],
    )
    cost = f"cost ({'$' if priced else 'GPU-hours'})"
    x = alt.X("days:Q", axis=style.axis("time to train (days)"), scale=_log(table["training_time"][places] / DAY))
    found = _cloud(data, table, places, x, cost, "memory")
    below = f"{len(places):,} of {model.feasible:,} candidates within the limits, as screened; large: the Pareto front"
    title = style.title(f"{model.model}: time to train against cost", below)
    found = found.properties(width=WIDTH, height=340, title=title)
    return found


def serving_pareto(model: ServingModelPlan) -> ChartType:
    """Deployments that keep all limits, seconds an output token against cost by GPU; the large points are the front in
    cost, both latencies and tokens/s/GPU."""
    table, priced = model.table, model.question.priced
    able = np.flatnonzero(table["bound_by"] == "")
    edge = table["pareto"][able]
    places = np.concatenate([able[edge], able[~edge][: max(0, MOST_POINTS - int(edge.sum()))]])
    decodes = bool(len(places)) and float(table["time_per_output_token"][places].max()) > 0
    time, said = ("time_per_output_token", "output token") if decodes else ("time_to_first_token", "first token")
    data = style.rows(
        place=places,
        time=table[time][places] * 1e3,
        cost=table["cost"][places],
        gpu=table["gpu"][places],
        hardware=[f"{gpus:,} {gpu}" for gpu, gpus in zip(table["gpu"][places], table["gpus"][places], strict=True)],
        front=["front" if one else "other" for one in table["pareto"][places]],
        first=[show(float(value), "s") for value in table["time_to_first_token"][places]],
        layout=[_engines(table, int(at)) for at in places],
    )
    cost = f"cost of a million output tokens ({'$' if priced else 'GPU-hours'})"
    x = alt.X("time:Q", axis=style.axis(f"time of the {said} (ms)"), scale=_log(table[time][places] * 1e3))
    found = _cloud(data, table, places, x, cost, "first")
    below = f"{len(places):,} of {model.feasible:,} deployments within the limits, by the closed form; large: the front"
    title = style.title(f"{model.model}: time of the {said} against cost", below)
    found = found.properties(width=WIDTH, height=340, title=title)
    return found


def _cloud(
    data: Any, table: dict[str, NDArray[Any]], places: NDArray[Any], x: alt.X, cost: str, told: str
) -> ChartType:
    """Candidates at `places` against cost, by GPU, the front large; a click picks one, its tooltip says `told` too."""
    digits = "~s" if float(table["cost"][places].max(initial=0.0)) >= 1e3 else "~g"  # no thousandths of a dollar
    found: ChartType = alt.Chart(data).mark_point(filled=True, cursor="pointer")
    found = found.add_params(alt.selection_point(name=PICKED, fields=["place"], on="click", clear="dblclick"))
    found = found.encode(
        x=x,
        y=alt.Y("cost:Q", axis=style.axis(cost, format=digits), scale=_log(table["cost"][places])),
        color=alt.Color(
            "gpu:N",
            legend=style.legend(orient="top", columns=3, values=sorted(set(map(str, table["gpu"][places])))),
            scale=style.palette(sorted(set(map(str, table["gpu"])))),
        ),
        size=alt.Size("front:N", legend=None, scale={"domain": ["front", "other"], "range": [90, 30]}),
        opacity=alt.Opacity("front:N", legend=None, scale={"domain": ["front", "other"], "range": [0.95, 0.35]}),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("hardware", "layout", told, "front")],
    )
    return found


def _engines(table: dict[str, NDArray[Any]], at: int) -> str:
    """The engines of one deployment."""
    parts = ("", "decode_") if table["disaggregated"][at] else ("",)
    names = ("instances", "instance_gpus", "tensor", "expert")
    told = ([int(table[part + name][at]) for name in names] for part in parts)
    return " + ".join(f"{many} x {gpus} GPUs, tensor {tensor}, expert {expert}" for many, gpus, tensor, expert in told)


def _log(values: NDArray[np.float64]) -> dict[str, Any]:
    """A logarithmic scale that ends a little beyond the values."""
    ends = [float(values.min()) / 1.15, float(values.max()) * 1.15] if len(values) else [1.0, 10.0]
    return {"type": "log", "nice": False, "domain": ends}
