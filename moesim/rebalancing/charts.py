"""Pictures of a study of rebalancing, from its plain data."""

from __future__ import annotations

from typing import Any

import altair as alt
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results.chart_style import INK, WIDTH

HEIGHT = 300
_LINES = {"saved": "saved by balance", "gain": "net gain", "waited": "waited for changes"}
_COLOURS = ("#0072B2", "#009E73", "#D55E00")


def gain_chart(found: dict[str, Any]) -> ChartType:
    """Percent of a step with experts in order: what balance saves, what changes cost, the difference, by interval."""
    base = found["rows"][0]["step"]["value"]
    lines = [
        (label, row["interval"], *(100.0 * row[key][end] / base for end in ("value", "low", "high")))
        for row in found["rows"]
        if row["interval"] is not None
        for key, label in _LINES.items()
    ]
    names, at, value, low, high = zip(*lines, strict=True)
    data = style.rows(line=names, at=at, value=value, low=low, high=high)
    x = alt.X("at:Q", axis=style.axis("steps between placements", format="~g"), scale=alt.Scale(type="log"))
    y_axis = style.axis("% of a step with experts in order")
    scale = {"domain": list(_LINES.values()), "range": list(_COLOURS)}
    base_chart = alt.Chart(data).encode(x=x)
    drawn = base_chart.mark_line(point={"size": 50}, strokeWidth=2).encode(
        y=alt.Y("value:Q", axis=y_axis),
        color=alt.Color("line:N", scale=scale, legend=style.legend(orient="top")),
        tooltip=["line:N", "at:Q", "value:Q", "low:Q", "high:Q"],
    )
    band = base_chart.mark_area(opacity=0.16).encode(
        y=alt.Y("low:Q", axis=y_axis), y2="high:Q", color=alt.Color("line:N", scale=scale, legend=None)
    )
    rule = alt.Chart(style.rows(zero=[0.0])).mark_rule(color=INK, strokeWidth=1).encode(y="zero:Q")
    chart: alt.LayerChart = alt.layer(rule, band, drawn).resolve_legend(color="independent")
    done: alt.LayerChart = chart.properties(
        width=WIDTH, height=HEIGHT, title=style.title(f"Rebalancing {found['name']}", found["sentence"])
    )
    return done


def over_time_chart(found: dict[str, Any]) -> ChartType:
    """SGLang's balancedness (mean of mean over busiest) of every step, one line a way to place."""
    lines = [
        (name, step, one["mean_over_max"])
        for name, steps in found["balance_over_time"].items()
        for step, one in enumerate(steps)
    ]
    names, at, value = zip(*lines, strict=True)
    scale = {"domain": list(found["balance_over_time"]), "range": list(_COLOURS)[: len(found["balance_over_time"])]}
    chart: alt.Chart = (
        alt.Chart(style.rows(line=names, at=at, value=value))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("at:Q", axis=style.axis("step")),
            y=alt.Y("value:Q", axis=style.axis("mean rank over busiest"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("line:N", scale=scale, legend=style.legend(orient="top")),
        )
        .properties(width=WIDTH, height=HEIGHT, title=style.title("Balancedness over time", "one seed; 1 is even"))
    )
    return chart
