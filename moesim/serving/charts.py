"""Pictures of a serving result: latencies, batches, KV cache and imbalance over time, the mean iteration, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
from altair.typing import ChartType
from numpy.typing import NDArray

from moesim.results import chart_style as style
from moesim.results import views
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.table import metric_label
from moesim.serving.table import iterations_by_phase
from moesim.units import show

if TYPE_CHECKING:
    from moesim.serving.result import ServingResult

POINTS = 400
HEIGHT = 240
_LATENCIES = ("time_to_first_token", "time_per_output_token", "latency")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#555555")
_ESTIMATE = "an estimate holds no requests: simulate to see them"


class ServingCharts:
    """Pictures of one serving result as altair charts; where the data are absent, a chart that says why."""

    def __init__(self, result: ServingResult) -> None:
        self._result = result

    def latency(self) -> ChartType:
        """Share of requests that are at most so slow, a picture a latency; a dashed line where a limit is."""
        columns, title = self._result.request_columns, "Latency of requests"
        if columns is None or not len(columns["latency"]):
            return _absent(title, _ESTIMATE)
        limits = self._limits()
        pictures = [_distribution(np.asarray(columns[name], np.float64), name, limits.get(name)) for name in _LATENCIES]
        note = f"share of {len(columns['latency']):,} requests that are at most so slow; dashed: limit"
        joined: alt.HConcatChart = alt.hconcat(*pictures, spacing=18, title=style.title(title, note))
        return joined

    def batch(self) -> ChartType:
        """Requests in the batch and requests that wait, over time."""
        return self._over_time("Batch", {"batch_requests": "in the batch", "waiting_requests": "waiting"}, "requests")

    def kv_cache(self) -> ChartType:
        """KV cache in use and reserved, over time."""
        names = {"kv_cache_use": "in use", "kv_cache_reserved": "reserved"}
        return self._over_time("KV cache", names, "share of its room", percent=True)

    def imbalance(self) -> ChartType:
        """max/mean over expert-parallel ranks and over experts, over time."""
        names = {"rank_load_max_over_mean": "busiest rank", "expert_load_max_over_mean": "busiest expert"}
        return self._over_time("Imbalance of routing", names, "max / mean")

    def breakdown(self) -> ChartType:
        """Where the mean iteration goes, a bar a pool."""
        phases, title = iterations_by_phase(self._result.breakdown), "Where an iteration goes"
        if not phases:
            return _absent(title, "the result has no iterations")
        rows = [
            (phase, part, value, share)
            for phase, parts in phases.items()
            for part, value, share in views.sorted_parts(parts)
        ]
        labels = {phase: f"{phase}, {show(sum(parts.values()), 's')}" for phase, parts in phases.items()}
        names = list(dict.fromkeys(part for _, part, _, _ in rows))
        data = style.rows(
            phase=[labels[phase] for phase, _, _, _ in rows],
            part=[part for _, part, _, _ in rows],
            place=[names.index(part) for _, part, _, _ in rows],
            share=[100 * share for _, _, _, share in rows],
            label=[f"{show(value, 's')}  ·  {show(share, 'fraction')}" for _, _, value, share in rows],
        )
        chart: alt.Chart = (
            alt.Chart(data)
            .mark_bar(stroke="white", strokeWidth=1)
            .encode(
                y=alt.Y("phase:N", sort=list(labels.values()), axis=style.axis(None, labelLimit=260)),
                x=alt.X("share:Q", axis=style.axis("% of the iteration"), scale=style.span(0, 100), stack="zero"),
                order=alt.Order("place:Q"),
                color=alt.Color(
                    "part:N", sort=names, scale=style.palette(names), legend=style.legend(orient="bottom", columns=4)
                ),
                tooltip=["phase:N", "part:N", alt.Tooltip("label:N", title="time · share")],
            )
        )
        heading = style.title(title, "mean over iterations, busiest rank")
        framed: alt.Chart = chart.properties(width=WIDTH, height=alt.Step(44), title=heading)
        return framed

    def memory(self) -> ChartType:
        """Memory of the fullest GPU by part."""
        parts, title = views.sorted_parts(self._result.memory), "Memory of the fullest GPU"
        if not parts:
            return _absent(title, "the result has no memory parts")
        factor, symbol = style.axis_unit([parts[0][1]], "B")
        names = [name for name, _, _ in parts]
        data = style.rows(
            part=names,
            bytes=[value / factor for _, value, _ in parts],
            label=[f"{show(value, 'B')}  ·  {show(share, 'fraction')}" for _, value, share in parts],
        )
        room = style.span(0, 1.3 * parts[0][1] / factor)
        base = alt.Chart(data).encode(
            y=alt.Y("part:N", sort=names, axis=style.axis(None, labelLimit=220, labelOverlap=False)),
            x=alt.X("bytes:Q", axis=style.axis(f"memory ({symbol})"), scale=room),
            tooltip=["part:N", alt.Tooltip("label:N", title="bytes · share")],
        )
        bars = base.mark_bar().encode(color=alt.Color("part:N", scale=style.palette(names), legend=None))
        text = base.mark_text(align="left", dx=5, fontSize=FONT, color=INK).encode(text=alt.Text("label:N"))
        heading = style.title(title, show(sum(value for _, value, _ in parts), "B"))
        chart: ChartType = alt.layer(bars, text).properties(width=WIDTH, height=alt.Step(26), title=heading)
        return chart

    def _limits(self) -> dict[str, float]:
        """Limits of the workload by column of the requests."""
        stated = (self._result.scenario.get("workload") or {}).get("limits") or {}
        found = {name: float(value) for name, value in stated.items() if value is not None}
        return {"latency" if name == "request_latency" else name: value for name, value in found.items()}

    def _over_time(self, title: str, names: dict[str, str], label: str, *, percent: bool = False) -> ChartType:
        """Columns of the time bins as lines, mean and extent over the instances of each phase."""
        columns = self._result.iteration_columns
        if columns is None or not len(columns["time"]):
            return _absent(title, _ESTIMATE)
        lines = [
            line
            for column, what in names.items()
            for line in _by_phase(columns, column, what, 100.0 if percent else 1.0)
        ]
        series = [name for name, _, _ in lines]
        data = style.rows(
            time=np.concatenate([time for _, time, _ in lines]),
            value=np.concatenate([value for _, _, value in lines]),
            line=np.repeat(series, [len(time) for _, time, _ in lines]),
        )
        scale = {"domain": series, "range": [_COLOURS[index % len(_COLOURS)] for index in range(len(series))]}
        chart: alt.Chart = (
            alt.Chart(data)
            .mark_line(strokeWidth=1.8)
            .encode(
                x=alt.X("time:Q", axis=style.axis("time (s)"), scale=alt.Scale(nice=False)),
                y=alt.Y("value:Q", axis=style.axis(f"{label} (%)" if percent else label)),
                color=alt.Color("line:N", scale=scale, legend=style.legend(orient="top", columns=4)),
                tooltip=["line:N", alt.Tooltip("time:Q", format=".4g"), alt.Tooltip("value:Q", format=".4g")],
            )
        )
        heading = style.title(title, "mean over the instances of a phase, in time bins")
        framed: alt.Chart = chart.properties(width=WIDTH, height=HEIGHT, title=heading)
        return framed


def _by_phase(
    columns: dict[str, NDArray[Any]], column: str, what: str, factor: float
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, time and value of a line for each phase; the mean over its instances."""
    phases = list(dict.fromkeys(map(str, columns["phase"].tolist())))
    found = []
    # Where nothing is computed nothing is uneven: the line has a gap there.
    worked = (columns["iterations"] > 0) | (not column.endswith("max_over_mean"))
    for phase in phases:
        chosen = (columns["phase"] == phase) & worked
        time, place = np.unique(columns["time"][chosen], return_inverse=True)
        count = np.bincount(place)
        value = np.bincount(place, weights=columns[column][chosen].astype(np.float64)) / count
        found.append((f"{phase}: {what}" if len(phases) > 1 else what, time, factor * value))
    return found


def _distribution(values: NDArray[np.float64], name: str, limit: float | None) -> ChartType:
    """The cumulative distribution of one latency, from 0 to its 99.9th percentile."""
    share = np.linspace(0.0, 1.0, min(POINTS, len(values) + 1))
    at = np.quantile(values, share)
    most = float(np.quantile(values, 0.999))
    factor, symbol = style.axis_unit([max(most, 1e-9)], "s")
    data = style.rows(at=np.minimum(at, most) / factor, share=100 * share)
    high = 1.02 * max(most, limit or 0.0) / factor
    label = metric_label(name) if name != "latency" else "request latency"
    line = (
        alt.Chart(data)
        .mark_line(strokeWidth=2, color=_COLOURS[0])
        .encode(
            x=alt.X("at:Q", axis=style.axis(f"{label} ({symbol})", tickCount=4), scale=style.span(0, high)),
            y=alt.Y("share:Q", axis=style.axis("% of requests", tickCount=5), scale=style.span(0, 100)),
            tooltip=[alt.Tooltip("at:Q", title=symbol, format=".4g"), alt.Tooltip("share:Q", format=".3g")],
        )
    )
    layers = [line]
    if limit is not None:
        rule = alt.Chart(style.rows(at=[limit / factor])).mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.5)
        layers.append(rule.encode(x="at:Q"))
    drawn: ChartType = alt.layer(*layers).properties(width=(WIDTH - 120) // 3, height=HEIGHT)
    return drawn


def _absent(title: str, why: str) -> alt.Chart:
    text = alt.Chart(style.rows(why=[why])).mark_text(fontSize=14, color=INK, limit=WIDTH).encode(text="why:N")
    absent: alt.Chart = text.properties(width=WIDTH, height=80, title=style.title(title, ""))
    return absent
