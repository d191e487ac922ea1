"""Steps as stacked bars, one under the other: where the seconds of each go, to the same scale and in one order."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.units import show


def step_stack(steps: Mapping[str, Mapping[str, float]]) -> ChartType:
    """A bar for each name with its step's seconds by part; parts stand in the order of the first step, largest first.

    `steps`: name -> part -> seconds, as `Result.breakdown`; at least one of them with a part above 0.
    """
    first = next(iter(steps.values()))
    known = list(dict.fromkeys(part for parts in steps.values() for part in parts))
    order = sorted(known, key=lambda part: -first.get(part, 0.0))
    totals = {name: sum(parts.values()) for name, parts in steps.items()}
    factor, symbol = style.axis_unit(list(totals.values()), "s")
    rows = []
    for name, parts in steps.items():
        begin = 0.0
        for part in order:
            seconds = parts.get(part, 0.0)
            label = f"{show(seconds, 's')}  ·  {show(seconds / totals[name], 'fraction')}"
            rows.append((name, part, begin / factor, (begin + seconds) / factor, label))
            begin += seconds
    names, held, begins, ends, labels = zip(*rows, strict=True)
    room = style.span(0, 1.16 * max(totals.values()) / factor)
    y = alt.Y("step:N", sort=list(steps), axis=style.axis(None, labelLimit=140, labelOverlap=False))
    bars = (
        alt.Chart(style.rows(step=names, part=held, begin=begins, end=ends, label=labels))
        .mark_bar(stroke="white", strokeWidth=1)
        .encode(
            y=y,
            x=alt.X("begin:Q", axis=style.axis(f"time, mean over GPUs ({symbol})"), scale=room),
            x2=alt.X2("end:Q"),
            color=alt.Color(
                "part:N", sort=order, scale=style.palette(order), legend=style.legend(orient="bottom", columns=6)
            ),
            tooltip=["step:N", "part:N", alt.Tooltip("label:N", title="time · share of the step")],
        )
    )
    whole = style.rows(
        step=list(steps),
        end=[total / factor for total in totals.values()],
        label=[show(total, "s") for total in totals.values()],
    )
    text = (
        alt.Chart(whole)
        .mark_text(align="left", dx=5, fontSize=FONT, color=INK)
        .encode(y=y, x=alt.X("end:Q", scale=room), text=alt.Text("label:N"))
    )
    heading = style.title("The step, part upon part", "seconds of compute and of waiting that add up to it")
    drawn: ChartType = alt.layer(bars, text).properties(width=WIDTH, height=alt.Step(34), title=heading)
    return drawn
