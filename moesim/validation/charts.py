"""Pictures of a validation: predicted against measured on log axes with the line of identity, and errors by group."""

from __future__ import annotations

import math
from typing import Literal

import altair as alt
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results.chart_style import INK, WIDTH
from moesim.units import show
from moesim.validation.run import Row, Validation
from moesim.validation.statistics import Stats

By = Literal["kind", "gpu", "model", "library", "metric"]
_SHAPES = ["circle", "triangle-up", "square", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right"]
_HEIGHT = 420
_LABELS = {"s": "time (s)", "token/s": "tokens per second", "ratio": "ratio", "fraction": "share", "GPU-h": "GPU-hours"}


def units(validation: Validation) -> tuple[str, ...]:
    """The units of the predicted rows, the commonest first: each is a picture of its own."""
    many: dict[str, int] = {}
    for row in validation.cases:
        if _comparable(row):
            many[row.unit] = many.get(row.unit, 0) + 1
    return tuple(sorted(many, key=lambda unit: -many[unit]))


def unit_label(unit: str) -> str:
    """What has this unit, in words."""
    return _LABELS.get(unit, unit)


def scatter(validation: Validation, unit: str, by: By = "kind") -> ChartType:
    """Predicted against measured, one point a row that is predicted; on the line they are the same."""
    rows = [row for row in validation.cases if row.unit == unit and _comparable(row)]
    left = sum(row.unit == unit for row in validation.cases) - len(rows)
    title = f"Predicted against measured: {unit_label(unit)}"
    if not rows:
        return _absent(title)
    names = sorted({_group(row, by) for row in rows})
    ends = _ends(rows)
    data = style.rows(
        measured=[row.measured for row in rows],
        predicted=[row.predicted for row in rows],
        group=[_group(row, by) for row in rows],
        case=[row.id for row in rows],
        metric=[row.metric for row in rows],
        reads=[f"{show(row.measured or 0.0, unit)}, predicted {show(row.predicted or 0.0, unit)}" for row in rows],
        error=[row.error if row.error is not None else math.nan for row in rows],
        range=[f"{show(row.low or 0.0, unit)} to {show(row.high or 0.0, unit)}, {row.basis}" for row in rows],
        library=[row.library for row in rows],
    )
    scale = {"type": "log", "domain": ends, "nice": False}
    points = alt.Chart(data).mark_point(filled=True, size=55, opacity=0.65)
    points = points.encode(
        x=alt.X("measured:Q", scale=scale, axis=style.axis(f"measured, {unit_label(unit)}", format=_format(unit))),
        y=alt.Y("predicted:Q", scale=scale, axis=style.axis(f"predicted, {unit_label(unit)}", format=_format(unit))),
        color=alt.Color("group:N", scale=style.palette(names), legend=style.legend(by, orient="bottom", columns=3)),
        shape=alt.Shape("group:N", scale={"domain": names, "range": _shapes(len(names))}, legend=None),
        tooltip=[
            *(alt.Tooltip(f"{name}:N") for name in ("case", "metric")),
            alt.Tooltip("reads:N", title="measured"),
            alt.Tooltip("error:Q", format="+.1%"),
            alt.Tooltip("range:N"),
            alt.Tooltip("library:N"),
        ],
    )
    same = alt.Chart(style.rows(at=ends)).mark_line(color=INK, strokeDash=[6, 4], strokeWidth=1.5)
    same = same.encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale))
    below = f"{len(rows):,} values; dashed: the same" + (f"; {left:,} not drawn: no prediction, or 0" if left else "")
    return alt.layer(same, points).properties(width=WIDTH - 40, height=_HEIGHT, title=style.title(title, below))


def errors(groups: dict[str, Stats], by: str) -> ChartType:
    """Median of the absolute relative error by group, with the error that nine in ten stay below."""
    known = {name: stats for name, stats in groups.items() if stats["n"]}
    title = f"Error by {by}"
    if not known:
        return _absent(title)
    names = sorted(known, key=lambda name: -(known[name]["median_ape"] or 0.0))
    data = style.rows(
        group=names,
        median=[known[name]["median_ape"] for name in names],
        p90=[known[name]["p90_ape"] for name in names],
        bias=[_percent(known[name]["bias"]) for name in names],
        values=[known[name]["n"] for name in names],
    )
    base = alt.Chart(data).encode(
        y=alt.Y("group:N", sort=names, axis=style.axis(None, labelLimit=220)),
        tooltip=[
            alt.Tooltip("group:N", title=by),
            alt.Tooltip("values:Q"),
            alt.Tooltip("median:Q", format=".1%"),
            alt.Tooltip("p90:Q", format=".1%", title="90 % stay below"),
            alt.Tooltip("bias:N"),
        ],
    )
    axis = style.axis("absolute relative error", format=".0%")
    bar = base.mark_bar(color="#0072B2", height={"band": 0.6}).encode(x=alt.X("median:Q", axis=axis))
    line = base.mark_rule(color="#0072B2").encode(x=alt.X("median:Q"), x2=alt.X2("p90:Q"))
    tick = base.mark_tick(color="#D55E00", thickness=3, height={"band": 0.6}).encode(x=alt.X("p90:Q", axis=axis))
    heading = style.title(title, "bar: median; tick: nine in ten stay below")
    return alt.layer(line, bar, tick).properties(width=WIDTH - 160, height=alt.Step(26), title=heading)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f} %"


def _comparable(row: Row) -> bool:
    """Whether both numbers have a place on log axes."""
    return bool(row.measured and row.measured > 0 and row.predicted and row.predicted > 0)


def _ends(rows: list[Row]) -> list[float]:
    values = [value for row in rows for value in (row.measured, row.predicted) if value]
    return [min(values) / 1.4, max(values) * 1.4]


def _group(row: Row, by: By) -> str:
    return str(getattr(row, by)) or "none"


def _format(unit: str) -> str:
    return ".0%" if unit == "fraction" else "~s" if unit in ("s", "token/s", "GPU-h") else "~g"


def _shapes(many: int) -> list[str]:
    return [_SHAPES[place % len(_SHAPES)] for place in range(many)]


def _absent(title: str) -> alt.Chart:
    text = alt.Chart(style.rows(why=["nothing to draw"])).mark_text(fontSize=14).encode(text=alt.Text("why:N"))
    absent: alt.Chart = text.properties(width=WIDTH, height=80, title=style.title(title, ""))
    return absent
