"""Pictures of a sensitivity: a tornado of every input alone, and the inputs' shares of the variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import altair as alt
from altair.typing import ChartType

from moesim.errors import UserError, shorten
from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.table import metric_label, shown
from moesim.sweeps.nouns import UNITS_OF

if TYPE_CHECKING:
    from moesim.sweeps.effects import Effect, End, Sensitivity

_ENDS = {"low end": "#0072B2", "high end": "#E69F00"}
_SHARES = {"alone (first order)": "#0072B2", "with the others (total)": "#56B4E9"}
_SIDES: tuple[tuple[str, Literal["left", "right"], int], ...] = (("left", "right", -5), ("right", "left", 5))
"""Of a bar: how the text stands there, and how far from the bar."""
_DIGITS = 12
_NAME = 60
"""Letters of a scenario's name, so that the line below a title is no wider than the picture."""
_BESIDE = 0.15
"""Room beside the longest share for its number, as a share of it."""
_ROOM = 0.32
"""Room beside the longest bar for what stands at its end, as a share of all bars together."""


class SensitivityCharts:
    """Pictures of one sensitivity as altair charts."""

    def __init__(self, sensitivity: Sensitivity) -> None:
        self._of = sensitivity

    def tornado(self) -> ChartType:
        """A bar an input from the scenario's own answer to that at either end, the widest first; at a bar's end stands
        the input's value there."""
        effects = sorted(self._of.effects, key=lambda effect: -effect.swing)
        base, unit = self._of.base.value, UNITS_OF[self._of.metric]
        values = [base, *(end.value for effect in effects for end in effect.ends if end.value is not None)]
        factor, symbol = _unit(values, unit)
        room = _ROOM * (max(values) - min(values) or abs(base) or 1.0)
        scale = style.span((min(values) - room) / factor, (max(values) + room) / factor)
        label = metric_label(self._of.metric)
        lanes = _lanes([effect.input.name for effect in effects])
        x = alt.X("end:Q", axis=style.axis(f"{label} ({symbol})" if symbol else label, tickCount=6), scale=scale)
        colour = alt.Color("side:N", scale={"domain": list(_ENDS), "range": list(_ENDS.values())}, legend=_legend())
        told = [alt.Tooltip(f"{name}:N") for name in ("input", "side", "setting", "answer", "change")]
        bars = alt.Chart(_bars(effects, base, factor, unit)).mark_bar(height={"band": 0.72})
        layers: list[Any] = [bars.encode(y=lanes, x=x, x2="base:Q", color=colour, tooltip=told)]
        for side, align, away in _SIDES:
            text = alt.Chart(_texts(effects, base, factor, side))
            mark = text.mark_text(align=align, dx=away, fontSize=FONT, color=INK, limit=WIDTH // 3)
            layers.append(mark.encode(y=lanes, x=alt.X("end:Q", scale=scale), text="text:N"))
        rule = alt.Chart(style.rows(_DIGITS, end=[base / factor])).mark_rule(color=INK)
        layers.append(rule.encode(x=alt.X("end:Q", scale=scale)))
        below = f"{shorten(self._of.name, _NAME)}: {shown(base, unit)}; every input alone to the ends of its range"
        return self._of_height(alt.layer(*layers), f"What moves {label}", below, 27)

    def sobol(self) -> ChartType:
        """Each input's share of the variance, alone and with all it has a part in, and their 90 % confidence.

        Raises `UserError` where no indices were asked for.
        """
        effects = [effect for effect in self._of.effects if effect.total is not None]
        if not effects:
            raise UserError("there are no Sobol indices; ask for them with method sobol")
        data = _shares(effects)
        lanes, kinds = _lanes([effect.input.name for effect in effects]), list(_SHARES)
        side = alt.YOffset("share:N", sort=kinds, scale=alt.Scale(paddingInner=0.1, paddingOuter=0.25))
        colour = alt.Color(
            "share:N", sort=kinds, scale={"domain": kinds, "range": list(_SHARES.values())}, legend=_legend()
        )
        told = [alt.Tooltip(f"{name}:N") for name in ("input", "share", "reads")]
        ends = [row[name] for row in data["values"] for name in ("low", "high")]
        scale = style.span(min(0.0, *ends), max(1.0, *ends) * (1.0 + _BESIDE))
        x = alt.X("value:Q", axis=style.axis("share of the variance", format="~%"), scale=scale)
        base = alt.Chart(data).encode(y=lanes, yOffset=side)
        bars = base.mark_bar().encode(x=x, color=colour, tooltip=told)
        ends_of = {"x": alt.X("low:Q", scale=scale), "x2": "high:Q"}
        # White below ink: the line is seen on its bar, too.
        margin = [
            base.mark_rule(color=ink, strokeWidth=wide).encode(**ends_of) for ink, wide in (("#FFFFFF", 4), (INK, 1.5))
        ]
        text = base.mark_text(align="left", dx=5, fontSize=FONT - 2, color=INK)
        margin.append(text.encode(x=alt.X("edge:Q", scale=scale), text="brief:N"))
        label, points = metric_label(self._of.metric), f"{self._of.samples:,} samples"
        below = f"{shorten(self._of.name, _NAME)}: all inputs at once, {points}; the lines are 90 % confidence"
        return self._of_height(alt.layer(bars, *margin), f"Which inputs make {label} vary", below, 13)

    @staticmethod
    def _of_height(chart: ChartType, title: str, below: str, each: int) -> ChartType:
        return chart.properties(width=WIDTH - 60, height=alt.Step(each), title=style.title(title, below))


def _lanes(names: Sequence[str]) -> alt.Y:
    """A lane an input, in the order given."""
    return alt.Y("input:N", sort=list(names), axis=style.axis(None, labelLimit=250, labelOverlap=False))


def _legend() -> dict[str, Any]:
    return style.legend(orient="top")


def _unit(values: Sequence[float], unit: str) -> tuple[float, str]:
    if unit == "fraction":
        return 0.01, "%"
    return (1.0, "") if unit in ("", "ratio") else style.axis_unit([max(map(abs, values))], unit)


def _moved(effects: Sequence[Effect]) -> list[tuple[Effect, str, End, float]]:
    """Every end that has an answer: its input, side, and answer."""
    return [
        (effect, side, end, end.value)
        for effect in effects
        for side, end in zip(_ENDS, effect.ends, strict=True)
        if end.value is not None
    ]


def _bars(effects: Sequence[Effect], base: float, factor: float, unit: str) -> dict[str, Any]:
    moved = _moved(effects)
    return style.rows(
        _DIGITS,
        input=[effect.input.name for effect, *_ in moved],
        side=[side for _, side, *_ in moved],
        setting=[effect.input.shown(end.at) for effect, _, end, _ in moved],
        answer=[shown(value, unit) for *_, value in moved],
        change=[f"{(value - base) / abs(base):+.2%}" if base else "–" for *_, value in moved],
        base=[base / factor] * len(moved),
        end=[value / factor for *_, value in moved],
    )


def _texts(effects: Sequence[Effect], base: float, factor: float, side: str) -> dict[str, Any]:
    """What stands on one side of the bars: the input's values there; on the right also what has no answer."""
    lines: list[tuple[str, float, str]] = []
    for effect in effects:
        ends = [(end, value) for one, _, end, value in _moved([effect]) if (value > base) == (side == "right")]
        ends = [(end, value) for end, value in ends if value != base]
        texts = [effect.input.shown(end.at) for end, _ in ends]
        if side == "right":
            lost = [end for end in effect.ends if end.status != "done"]
            texts += [f"{effect.input.shown(end.at)} {_lost(end)}" for end in lost]
            texts += ["no effect"] if not effect.swing and not lost else []
        if texts:
            edges = [value for _, value in ends] or [base]
            edge = max(edges) if side == "right" else min(edges)
            lines.append((effect.input.name, edge / factor, shorten(" · ".join(texts), 60)))
    return style.rows(
        _DIGITS, input=[line[0] for line in lines], end=[line[1] for line in lines], text=[line[2] for line in lines]
    )


def _lost(end: End) -> str:
    return "does not fit" if end.status == "infeasible" else f"is {end.status}" if end.status == "illegal" else "failed"


def _shares(effects: Sequence[Effect]) -> dict[str, Any]:
    found = [
        (effect.input.name, kind, index)
        for effect in effects
        for kind, index in zip(_SHARES, (effect.first, effect.total), strict=True)
        if index is not None
    ]
    return style.rows(
        input=[name for name, *_ in found],
        share=[kind for _, kind, _ in found],
        value=[index.value for *_, index in found],
        low=[index.low for *_, index in found],
        high=[index.high for *_, index in found],
        edge=[max(index.value, index.high) for *_, index in found],
        brief=[f"{round(100 * index.value)} ±{100 * index.reach:.0f} %" for *_, index in found],
        reads=[f"{index.value:.1%} ({index.low:.1%} to {index.high:.1%})" for *_, index in found],
    )
