"""Pictures of a sweep: any metric over one field, by another, or over two as a heat map.

Points of the same fields (seeds, and fields that are not drawn) are one: their mean, from the lowest end of a range to
the highest.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, WIDTH
from moesim.results.table import metric_label
from moesim.sweeps.fields import unit_of, value_shown
from moesim.sweeps.nouns import UNITS_OF
from moesim.sweeps.result import Sweep
from moesim.units import show

HEIGHT = 320
MOST_BANDS = 1
"""Lines whose ranges are drawn; those of more would hide each other."""
MOST_LABELS = 150
"""Cells of a heat map that are labelled with their value; more would not be readable."""


def points(sweep: Sweep, metric: str, fields: Sequence[str]) -> pd.DataFrame:
    """One line for every combination of the fields: mean value, range, how many points, how many are done, and why the
    others are not. In SI; the value is NaN where no point is done."""
    table = sweep.table
    keys = [table[field].astype(object).where(table[field].notna(), "as it is") for field in fields]
    lines = []
    for at, part in table.groupby(keys, sort=False):
        done = part[part["status"] == "done"]
        whys = [reason for reason in part.loc[part["status"] != "done", "reason"] if reason]
        lines.append(
            {
                **dict(zip(fields, at, strict=True)),
                "value": done[metric].mean(),
                "low": done[f"{metric}_low"].min(),
                "high": done[f"{metric}_high"].max(),
                "points": len(part),
                "done": len(done),
                "reason": whys[0] if whys else "",
            }
        )
    return pd.DataFrame(lines)


def lines(sweep: Sweep, metric: str, x: str, colour: str | None = None) -> ChartType:
    """The metric over the field `x`, one line for every value of the field `colour`."""
    data = points(sweep, metric, [x, *([colour] if colour else [])])
    known = data[data["value"].notna()]
    title = f"{_named(metric)} over {_short(x)}"
    if known.empty:
        return _absent(title, str(data["reason"].iloc[0]) or "no point has this metric")
    factor, symbol = _unit(known["value"], metric)
    shown = style.rows(
        x=known[x],
        value=known["value"] / factor,
        low=known["low"] / factor,
        high=known["high"] / factor,
        line=[_text(value, colour) for value in (known[colour] if colour else known["value"].map(lambda _: metric))],
        reads=[_reads(line, metric) for line in known.to_dict("records")],
        points=known["points"],
    )
    base = alt.Chart(shown).encode(x=_place(known[x], x))
    hue = _hue(known[colour] if colour else None, colour)
    told = [
        alt.Tooltip("x:N" if _nominal(known[x]) else "x:Q", title=_short(x)),
        alt.Tooltip("reads:N", title=_named(metric)),
        alt.Tooltip("points:Q"),
    ]
    told += [alt.Tooltip("line:N", title=_short(colour))] if colour else []
    banded = not _nominal(known[x]) and (colour is None or known[colour].nunique() <= MOST_BANDS)
    line = base.mark_line(point={"size": 60}, strokeWidth=2).encode(
        y=alt.Y("value:Q", axis=style.axis(_axis(metric, symbol)), scale={"zero": False}), color=hue, tooltip=told
    )
    band = base.mark_area(opacity=0.14, color="#0072B2").encode(
        y=alt.Y("low:Q", axis=style.axis(_axis(metric, symbol))), y2=alt.Y2("high:Q"), detail=alt.Detail("line:N")
    )
    layers = [band, line] if banded else [line]
    heading = style.title(title, _below(data, "as bands" if banded else "in the tooltip"))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=heading)


def heat_map(sweep: Sweep, metric: str, x: str, y: str) -> ChartType:
    """The metric over two fields; a cell without a value says in its tooltip why."""
    data = points(sweep, metric, [x, y])
    title = f"{_named(metric)} over {_short(x)} and {_short(y)}"
    known = data[data["value"].notna()]
    if known.empty:
        return _absent(title, str(data["reason"].iloc[0]) or "no point has this metric")
    factor, symbol = _unit(known["value"], metric)
    orders = {field: [_text(value, field) for value in _ordered(data[field])] for field in (x, y)}
    shown = style.rows(
        x=[_text(value, x) for value in data[x]],
        y=[_text(value, y) for value in data[y]],
        reads=[_reads(line, metric) for line in data.to_dict("records")],
    )
    for row, value in zip(shown["values"], data["value"], strict=True):
        row["value"] = None if pd.isna(value) else float(f"{value / factor:.5g}")
    base = alt.Chart(shown).encode(
        x=alt.X("x:N", sort=orders[x], axis=style.axis(_short(x), labelAngle=0)),
        y=alt.Y("y:N", sort=orders[y][::-1], axis=style.axis(_short(y))),
    )
    fill = alt.Color(
        "value:Q", scale=alt.Scale(scheme="viridis"), legend=style.legend(_axis(metric, symbol)),
    )  # fmt: skip
    told = [alt.Tooltip("x:N", title=_short(x)), alt.Tooltip("y:N", title=_short(y)), alt.Tooltip("reads:N", title="")]
    layers: list[Any] = [base.mark_rect(invalid=None).encode(color=fill, tooltip=told)]
    if len(data) <= MOST_LABELS:
        layers.append(_labels(base, float(known["value"].min() + known["value"].max()) / 2.0 / factor))
    heading = style.title(title, _below(data, "in the tooltip"))
    height = max(200, min(480, 30 * len(orders[y])))
    return alt.layer(*layers).properties(width=WIDTH - 60, height=height, title=heading)


def _labels(base: alt.Chart, middle: float) -> alt.Chart:
    """The values in their cells, readable on either end of the colours; "–" where there is none."""
    text = base.mark_text(fontSize=FONT).encode(
        text=alt.condition("isValid(datum.value)", alt.Text("value:Q", format=".3~g"), alt.value("–")),
        color=alt.condition(f"datum.value > {middle!r}", alt.value("#111111"), alt.value("#EEEEEE")),
    )
    found: alt.Chart = text
    return found


def _hue(values: pd.Series[Any] | None, field: str | None) -> Any:
    """The colour of lines: from dark to light for numbers, apart from each other for names."""
    if values is None:
        return alt.value("#0072B2")
    names = [_text(value, field) for value in _ordered(values)]
    legend = style.legend(_short(field), orient="top", columns=4)
    if _nominal(values):
        return alt.Color("line:N", scale=style.palette(names), sort=names, legend=legend)
    scale = alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0.15, 0.9]), domain=names)
    return alt.Color("line:O", scale=scale, sort=names, legend=legend)


def _place(values: pd.Series[Any], field: str) -> alt.X:
    """The horizontal axis: even steps for names, a log axis for numbers that go up by factors."""
    if _nominal(values):
        order = [_text(value, field) for value in _ordered(values)]
        return alt.X("x:N", sort=order, axis=style.axis(_short(field), labelAngle=0))
    numbers = sorted(set(map(float, values)))
    factors = len(numbers) > 2 and numbers[0] > 0 and numbers[-1] / numbers[0] >= 4
    scale = {"type": "log", "nice": False} if factors else {"zero": False, "nice": False}
    ticks = {"values": numbers} if len(numbers) <= 12 else {}
    unit = unit_of(field)
    axis = style.axis(f"{field} ({unit})" if unit else field, format="~s" if numbers[-1] >= 1e4 else "~g", **ticks)
    return alt.X("x:Q", axis=axis, scale=scale)


def _nominal(values: pd.Series[Any]) -> bool:
    return not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _ordered(values: pd.Series[Any]) -> list[Any]:
    """Each value once: numbers by size, names in the order of the sweep."""
    once = list(dict.fromkeys(values))
    return once if _nominal(values) else sorted(once)


def _unit(values: pd.Series[Any], metric: str) -> tuple[float, str]:
    unit = UNITS_OF[metric]
    if unit == "fraction":
        return 0.01, "%"
    return (1.0, "") if unit in ("", "ratio") else style.axis_unit([float(values.abs().max())], unit)


def _axis(metric: str, symbol: str) -> str:
    return f"{_named(metric)} ({symbol})" if symbol else _named(metric)


def _named(metric: str) -> str:
    return metric_label(metric)


def _reads(line: Mapping[Hashable, Any], metric: str) -> str:
    if pd.isna(line["value"]):
        return str(line["reason"]) or "the scenario has no such metric"
    unit = UNITS_OF[metric]
    return f"{show(line['value'], unit)} ({show(line['low'], unit)} to {show(line['high'], unit)})"


def _below(data: pd.DataFrame, where: str) -> str:
    """What stands under the title: whether points were averaged, where ranges are, how many have no answer."""
    most, missing = int(data["points"].max()), int((data["points"] - data["done"]).sum())
    said = [f"mean of {most} points each; ranges over all of them {where}" if most > 1 else f"ranges {where}"]
    return "; ".join([*said, *([f"{missing:,} points have no answer"] if missing else [])])


def _short(field: str | None) -> str:
    return field or ""


def _text(value: Any, field: str | None) -> str:
    if isinstance(value, float) and not unit_of(field or ""):
        return f"{value:.5g}"
    return value_shown(field or "", value)


def _absent(title: str, why: str) -> alt.Chart:
    text = alt.Chart(style.rows(why=[why])).mark_text(fontSize=14, limit=WIDTH).encode(text=alt.Text("why:N"))
    absent: alt.Chart = text.properties(width=WIDTH, height=80, title=style.title(title, ""))
    return absent
