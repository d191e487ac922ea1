"""Pictures of a comparison: from one step to another, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
from altair.typing import ChartType

from moesim.errors import UserError
from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.compare_waterfall import Bar, axis_begin, bar_texts, begin_text, middle_cut
from moesim.units import show

if TYPE_CHECKING:
    from moesim.results.compare import Comparison, Explanation

_DIGITS = 12
_ROOM = 0.3
_KINDS = {"whole": "#A8A8A8", "longer": "#E69F00", "shorter": "#0072B2"}


class ComparisonCharts:
    """Pictures of one comparison as altair charts."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def waterfall(self, which: int = 1) -> ChartType:
        """What the `which`-th explanation tells: the first result's step (or iteration), one bar a part that makes the
        other's longer or shorter, and the other's own. Raises `UserError` where there is no such explanation."""
        count = len(self._comparison.explanations)
        if not 1 <= which <= count:
            raise UserError(f"waterfall: which must be 1{f' to {count}' if count > 1 else ''}, got {which}")
        why = self._comparison.explanations[which - 1]
        bars = why.bars
        begin, end = axis_begin(bars), max(bar.end for bar in bars)
        factor, symbol = style.axis_unit([end], "s")
        data = _rows(bars, begin, factor)
        names = [bar.name for bar in bars]
        axis = style.axis(None, labelLimit=250, labelOverlap=False)
        lanes = alt.Y("bar:N", sort=names, axis=axis, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15))
        room = style.span(begin / factor, (end + _ROOM * (end - begin)) / factor)
        x_axis = style.axis(f"time, {why.whole.over} ({symbol})", tickCount=6)
        base = alt.Chart(data).encode(y=lanes)
        position = {"x": alt.X("begin:Q", axis=x_axis, scale=room), "x2": alt.X2("end:Q")}
        colour = alt.Color("change:N", scale={"domain": list(_KINDS), "range": list(_KINDS.values())}, legend=None)
        share = alt.Tooltip("share:N", title=f"share of the first {why.whole.name}")
        tooltip = [alt.Tooltip("bar:N"), alt.Tooltip("time:N"), share]
        tooltip += [alt.Tooltip("folded:N", title="holds")] * any(bar.folded for bar in bars)
        links = base.mark_rule(color="#888888", strokeWidth=1).encode(x="end:Q", y2="next:N")
        solid = base.mark_bar().encode(**position, color=colour, tooltip=tooltip)
        text = base.mark_text(align="left", dx=5, fontSize=FONT, color=INK).encode(x="right:Q", text="label:N")
        layers = [links, solid, text, *([_torn(names, begin / factor)] if begin else [])]
        return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(26), title=self._title(why, begin))

    def _title(self, why: Explanation, begin: float) -> dict[str, Any]:
        names, whole = self._comparison.names, why.whole
        sign, size = "−" if why.difference < 0 else "+", abs(why.difference)
        said = f"{sign}{show(size, 's')}" + (f", {sign}{show(size / why.steps[0], 'fraction')}" if why.steps[0] else "")
        colours = f"orange makes the {whole.name} longer, blue shorter"
        lines = [f"{said}; {colours}" if len(why.bars) > 2 else "the same time in every part"]
        cut = f"the axis begins at {begin_text(why.bars)}: both {whole.several} are cut, the parts are to scale"
        lines += [cut] if begin else []
        heading = style.title(f"{middle_cut(names[why.which], 36)} against {middle_cut(names[0], 36)}", "")
        return {**heading, "subtitle": lines}


def _rows(bars: Sequence[Bar], begin: float, factor: float) -> dict[str, Any]:
    """One row a bar; a step that is cut begins where the axis does, and every bar is linked to the one after it."""
    names, texts = [bar.name for bar in bars], bar_texts(bars)
    return style.rows(
        _DIGITS,
        bar=names,
        next=[*names[1:], names[-1]],
        begin=[max(bar.begin, begin) / factor for bar in bars],
        end=[bar.end / factor for bar in bars],
        right=[max(bar.begin, bar.end) / factor for bar in bars],
        change=[bar.kind if bar.kind == "whole" else "longer" if bar.change > 0 else "shorter" for bar in bars],
        time=[time for time, _ in texts],
        share=[share for _, share in texts],
        label=[
            time if bar.kind == "whole" else f"{time}  ·  {share}"
            for bar, (time, share) in zip(bars, texts, strict=True)
        ],
        folded=[", ".join(bar.folded) or "–" for bar in bars],
    )


def _torn(names: Sequence[str], begin: float) -> alt.Chart:
    """White strokes across the two bars that are cut."""
    data = style.rows(_DIGITS, bar=[names[0], names[-1]], at=[begin, begin], text=["//", "//"])
    mark = alt.Chart(data).mark_text(dx=14, fontSize=22, fontWeight="bold", color="white", tooltip=None)
    torn: alt.Chart = mark.encode(y=alt.Y("bar:N", sort=list(names)), x="at:Q", text="text:N")
    return torn
