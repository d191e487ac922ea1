"""Pictures of curves: metrics over one input, with the range of each and a mark where the scenario stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.typing import ChartType

from moesim.provenance import Quantity
from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.curve import Curve
from moesim.results.table import metric_label
from moesim.units import show

HEIGHT = 260
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def curve_chart(curve: Curve, metrics: Sequence[str], title: str, *, doubling: bool = False) -> ChartType:
    """The metrics (of one unit) over the input; `doubling`: an axis on which each doubling is as wide as any other."""
    found = _drawn(curve, metrics)
    if not found:
        whys = [point.why for point in curve.points if point.why]
        return _absent(title, whys[0] if whys else "the scenario has none of these metrics")
    lines = [(metric_label(name), at, one) for name, answered in found.items() for at, one in answered]
    percent = lines[0][2].unit == "fraction"
    names, factor = [metric_label(name) for name in found], 0.01 if percent else 1.0
    data = style.rows(
        metric=[name for name, _, _ in lines],
        at=[at for _, at, _ in lines],
        value=[one.value / factor for _, _, one in lines],
        low=[one.low / factor for _, _, one in lines],
        high=[one.high / factor for _, _, one in lines],
        reads=[_reads(one) for _, _, one in lines],
    )
    scale: dict[str, Any] = {"type": "log", "base": 2} if doubling else {"zero": False, "nice": False}
    ticks = {"values": sorted({at for _, at, _ in lines})} if doubling else {}
    x_axis, y_axis = style.axis(curve.label, format="~g", **ticks), style.axis("%" if percent else lines[0][2].unit)
    base = alt.Chart(data).encode(x=alt.X("at:Q", axis=x_axis, scale=alt.Scale(**scale)))
    line = base.mark_line(point={"size": 55}, strokeWidth=2).encode(
        y=alt.Y("value:Q", axis=y_axis),
        color=_colour(names, style.legend(orient="top", columns=2)),
        tooltip=["metric:N", alt.Tooltip("at:Q", title=curve.label), alt.Tooltip("reads:N", title="value")],
    )
    band = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", axis=y_axis), y2="high:Q", color=_colour(names, None))
    chart: alt.LayerChart = alt.layer(line, band, *_here(curve)).resolve_legend(color="independent")
    drawn: alt.LayerChart = chart.properties(width=WIDTH, height=HEIGHT, title=style.title(title, curve.note))
    return drawn


def _drawn(curve: Curve, metrics: Sequence[str]) -> dict[str, list[tuple[float, Quantity]]]:
    """The metrics that have points; those that are zero everywhere are left out beside others that are not."""
    found = {name: curve.answered(name) for name in metrics}
    found = {name: answered for name, answered in found.items() if answered}
    moving = {name: answered for name, answered in found.items() if any(one.value for _, one in answered)}
    return moving or dict(list(found.items())[:1])


def _reads(one: Quantity) -> str:
    """Value, range and basis for reading."""
    low, value, high = (show(end, one.unit) for end in (one.low, one.value, one.high))
    return f"{value} ({low} to {high}), {one.basis}"


def _colour(names: Sequence[str], legend: dict[str, Any] | None) -> alt.Color:
    scale = {"domain": list(names), "range": list(_COLOURS[: len(names)])}
    return alt.Color("metric:N", scale=scale, legend=legend)


def _here(curve: Curve) -> list[alt.Chart]:
    """A dashed rule where the scenario stands."""
    if curve.here is None:
        return []
    base = alt.Chart(style.rows(at=[curve.here], text=["this scenario"])).encode(x="at:Q")
    rule = base.mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.5)
    behind = sum(point.at <= curve.here for point in curve.points) > len(curve.points) / 2
    side: dict[str, Any] = {"align": "right", "dx": -5} if behind else {"align": "left", "dx": 5}
    text = base.mark_text(baseline="top", y=4, fontSize=FONT, color=INK, **side).encode(text="text:N")
    return [rule, text]


def _absent(title: str, why: str) -> alt.Chart:
    text = alt.Chart(style.rows(why=[why])).mark_text(fontSize=14, color=INK, limit=WIDTH).encode(text="why:N")
    absent: alt.Chart = text.properties(width=WIDTH, height=80, title=style.title(title, ""))
    return absent
