"""A picture of how well a fitted profile draws what it was not fitted on, beside replay and popularity alone."""

from __future__ import annotations

import altair as alt
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results.chart_style import INK, WIDTH
from moesim.routing.profile import GoodnessRow, RoutingProfile

LAWS = {"profile": "#0072B2", "other recorded sequences": "#009E73", "popularity alone": "#E69F00"}
_SHAPES = {"profile": "circle", "other recorded sequences": "diamond", "popularity alone": "triangle-up"}


def goodness(profile: RoutingProfile) -> ChartType:
    """Error of every measure on sequences that the fit has not seen: in percent, of shares in percentage points."""
    rows = profile.meta.goodness
    title = "Fit against the recording"
    if not rows:
        text = "too few sequences to hold any out: how good the fit is cannot be told"
        absent: alt.Chart = (
            alt.Chart(style.rows(why=[text])).mark_text(fontSize=14, limit=WIDTH).encode(text=alt.Text("why:N"))
        )
        return absent.properties(width=WIDTH, height=80, title=style.title(title, ""))
    points = [
        (_measure(row), law, 100.0 * error, row)
        for row in rows
        for law, error in zip(LAWS, (row.error, row.replay, row.popularity), strict=True)
        if error is not None
    ]
    data = style.rows(
        5,
        measure=[measure for measure, *_ in points],
        law=[law for _, law, *_ in points],
        error=[error for *_, error, _ in points],
        reads=[f"{error:+.1f} {'points' if row.unit == 'points' else '%'}" for *_, error, row in points],
        recorded=[row.recorded for *_, row in points],
        worst=[f"{100 * row.worst_layer:+.1f}" for *_, row in points],
    )
    order = list(dict.fromkeys(_measure(row) for row in rows))
    base = alt.Chart(data).encode(y=alt.Y("measure:N", sort=order, axis=style.axis(None, labelLimit=300)))
    dots = base.mark_point(filled=True, size=70, opacity=0.85).encode(
        x=alt.X("error:Q", axis=style.axis("error (%, of shares in points)")),
        color=alt.Color(
            "law:N",
            scale={"domain": list(LAWS), "range": list(LAWS.values())},
            legend=style.legend(orient="top", columns=3),
        ),
        shape=alt.Shape("law:N", scale={"domain": list(LAWS), "range": list(_SHAPES.values())}, legend=None),
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("law:N"),
            alt.Tooltip("reads:N", title="error"),
            alt.Tooltip("recorded:Q", format=".4g"),
            alt.Tooltip("worst:N", title="profile's worst layer"),
        ],
    )
    zero = alt.Chart(style.rows(at=[0])).mark_rule(color=INK, strokeDash=[4, 4]).encode(x=alt.X("at:Q"))
    heading = style.title(title, "on sequences that it has not seen; nearer to 0 is better")
    return alt.layer(zero, dots).properties(width=WIDTH - 200, height=alt.Step(16), title=heading)


def _measure(row: GoodnessRow) -> str:
    over = f", {row.ranks} ranks" if row.ranks else ""
    batch = f", {row.batch} sequence{'s' if row.batch > 1 else ''}" if row.batch else ""
    return f"{row.metric}{over}{batch}"
