"""Pictures of a result; the only file of the library that knows altair.

Data go in as plain values under explicit types and names: no row limit is met, no setting of the user's altair is
touched, and one result always gives the same specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
from altair.typing import ChartType

from moesim.results import chart_style as style
from moesim.results import views
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.result import Columns
from moesim.units import show

if TYPE_CHECKING:
    from moesim.results.result import Result

MAX_CELLS = 20_000
MAX_EXPERT_BLOCKS = 512
MAX_TRAFFIC_BLOCKS = 64
MAX_RUNS = 5_000
MAX_WINDOW = 1_000
SHOWN_WINDOW = 320
WINDOW_STAGES = 4
_OWN_COLOURS = {"scale": {"color": "independent"}}
_STREAMS = ("compute", "communication", "point-to-point", "data-parallel")


class Charts:
    """Pictures of one result as altair charts; where the data are absent, a chart that says why."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def breakdown(self) -> ChartType:
        """Where the step goes: seconds and share of every part, the largest on top."""
        parts = views.sorted_parts(self._result.breakdown)
        title = "Where the step goes"
        if not parts:
            return _absent(title, "the result has no breakdown")
        longest, step = parts[0][1], sum(value for _, value, _ in parts)
        factor, symbol = style.axis_unit([longest], "s")
        names = [name for name, _, _ in parts]
        data = style.rows(
            part=names,
            time=[value / factor for _, value, _ in parts],
            label=[f"{show(value, 's')}  ·  {show(share, 'fraction')}" for _, value, share in parts],
        )
        x_axis, room = style.axis(f"time, mean over GPUs ({symbol})"), style.span(0, 1.3 * longest / factor)
        base = alt.Chart(data).encode(
            y=alt.Y("part:N", sort=names, axis=style.axis(None, labelLimit=220, labelOverlap=False)),
            x=alt.X("time:Q", axis=x_axis, scale=room),
            tooltip=[alt.Tooltip("part:N"), alt.Tooltip("label:N", title="time · share of the step")],
        )
        bars = base.mark_bar().encode(color=alt.Color("part:N", scale=style.palette(names), legend=None))
        text = base.mark_text(align="left", dx=5, fontSize=FONT, color=INK).encode(text=alt.Text("label:N"))
        heading = style.title(title, f"one step, {show(step, 's')}")
        return alt.layer(bars, text).properties(width=WIDTH, height=alt.Step(26), title=heading)

    def memory(self) -> ChartType:
        """Memory of the fullest GPU by part, against what the GPU has."""
        parts = views.sorted_parts(self._result.memory)
        title = "Memory of the fullest GPU"
        if not parts:
            return _absent(title, "the result has no memory parts")
        total, capacity = sum(value for _, value, _ in parts), views.gpu_memory(self._result.summary)
        factor, symbol = style.axis_unit([total, capacity or 0.0], "B")
        names = [f"{name}  {show(value, 'B')}" for name, value, _ in parts]
        sizes = np.array([value for _, value, _ in parts]) / factor
        ends = np.cumsum(sizes)
        shares = [show(share, "fraction") for _, _, share in parts]
        room = style.span(0, 1.06 * max(total, capacity or 0.0) / factor)
        legend = style.legend(orient="bottom", columns=3)
        bars = (
            alt.Chart(style.rows(part=names, begin=ends - sizes, end=ends, share=shares))
            .mark_bar(height=44, stroke="white", strokeWidth=1)
            .encode(
                x=alt.X("begin:Q", axis=style.axis(f"memory ({symbol})"), scale=room),
                x2=alt.X2("end:Q"),
                color=alt.Color("part:N", sort=names, scale=style.palette(names), legend=legend),
                tooltip=[alt.Tooltip("part:N"), alt.Tooltip("share:N", title="share of the total")],
            )
        )
        limit, said = [], show(total, "B")
        if capacity is not None:
            limit = _limit_line(capacity / factor, f"{show(capacity, 'B')} GPU")
            said += f", {show(total / capacity, 'fraction')} of the GPU's {show(capacity, 'B')}"
        return alt.layer(bars, *limit).properties(width=WIDTH, height=84, title=style.title(title, said))

    def expert_load(self) -> ChartType:
        """Tokens of every expert over its layer's mean, and beside it the busiest over the mean by layer."""
        title = "Load of experts by layer"
        columns = self._result.routing_columns
        if columns is None or not len(columns["tokens"]):
            return _absent(title, "no tokens were routed: the model has no routed experts")
        load = views.expert_load(columns)
        cells, note, data = _load_cells(load)
        bounds = views.rank_boundaries(load.rank)
        note += "; lines part the expert-parallel ranks" if bounds else ""
        lines = alt.Chart(style.rows(expert=bounds)).mark_rule(color=INK, opacity=0.55).encode(x=alt.X("expert:Q"))
        picture = alt.layer(cells, *([lines] if bounds else [])).properties(title=style.title(title, note))
        # The large table stands at the top, because altair copies the data of every part that it joins.
        return alt.hconcat(picture, _peaks(load), data=data, spacing=14, resolve=_OWN_COLOURS)

    def traffic(self) -> ChartType:
        """Bytes from each source rank to each destination rank in one dispatch."""
        title = "Dispatch traffic between ranks"
        traffic = self._result.traffic
        if traffic is None or not traffic.size:
            return _absent(title, "no tokens were sent between ranks: no expert parallelism")
        ranks = len(traffic)
        width, mean = views.block_mean(np.asarray(traffic, np.float64), MAX_TRAFFIC_BLOCKS)
        factor, symbol = style.axis_unit([float(mean.max())], "B")
        source, destination = (index.ravel() * width for index in np.indices(mean.shape))
        data = style.rows(4, source=source, destination=destination, bytes=mean.ravel() / factor)
        pixels = max(2, round(440 / len(mean))) * len(mean)
        cell = f"a cell is the mean pair of {width} x {width} ranks" if width > 1 else "a cell is a pair of ranks"
        below, whole = _whole(ranks, reverse=True), {"grid": False, "tickMinStep": 1}
        chart: alt.Chart = _cells(alt.Chart(data), {"x": ("destination", ranks), "y": ("source", ranks)}, width).encode(
            x=alt.X("destination:Q", axis=style.axis("destination rank", **whole), scale=_whole(ranks)),
            y=alt.Y("source:Q", axis=style.axis("source rank", **whole), scale=below),
            color=alt.Color("bytes:Q", scale=alt.Scale(scheme="blues", zero=True), legend=style.legend(symbol)),
            tooltip=[
                alt.Tooltip("source:Q"),
                alt.Tooltip("destination:Q"),
                alt.Tooltip("bytes:Q", title=symbol, format=".4g"),
            ],
        )
        heading = style.title(title, f"one dispatch, mean of layers; {cell}")
        return _framed(chart, pixels, pixels, heading)

    def timeline(self) -> ChartType:
        """The whole step as a pipeline, and operations of a few stages around its middle; drag and wheel to zoom."""
        title = "Timeline of the step"
        columns = self._result.operation_columns
        if columns is None or not len(columns["begin"]):
            estimate = "an estimate holds no operations: simulate to see them"
            return _absent(title, estimate if self._result.road == "estimate" else "no operations were recorded")
        step = views.first_step(columns)
        return alt.vconcat(_pipeline(step), _operations(step), spacing=24, resolve=_OWN_COLOURS)


def _limit_line(at: float, text: str) -> list[alt.Chart]:
    base = alt.Chart(style.rows(limit=[at], text=[text])).encode(x=alt.X("limit:Q"))
    rule = base.mark_rule(color="black", strokeWidth=2, strokeDash=[6, 3])
    label = base.mark_text(align="right", baseline="top", dx=-5, y=2, fontSize=FONT, fontWeight="bold", color=INK)
    return [rule, label.encode(text=alt.Text("text:N"))]


def _load_cells(load: views.ExpertLoad) -> tuple[alt.Chart, str, dict[str, Any]]:
    """The heat map without its data, what a cell is, and the data."""
    layers, experts = load.load.shape
    width, starts = views.blocks(experts, min(MAX_EXPERT_BLOCKS, max(1, MAX_CELLS // layers)))
    busiest = np.maximum.reduceat(load.load, starts, axis=1)
    layer, place = (index.ravel() for index in np.indices(busiest.shape))
    data = style.rows(4, layer=load.layers[layer], expert=starts[place], load=busiest.ravel())
    scale = alt.Scale(scheme="blueorange", domain=[0, 1, max(float(busiest.max()), 2.0)])
    legend = style.legend("tokens / mean", orient="bottom", gradientLength=200)
    cells = _cells(alt.Chart(), {"x": ("expert", experts)}, width).encode(
        x=alt.X("expert:Q", axis=style.axis("expert", grid=False, tickMinStep=1), scale=_whole(experts)),
        y=alt.Y("layer:O", axis=style.axis("model layer")),
        color=alt.Color("load:Q", scale=scale, legend=legend),
        tooltip=[
            alt.Tooltip("layer:O"),
            alt.Tooltip("expert:Q"),
            alt.Tooltip("load:Q", title="tokens / mean", format=".3g"),
        ],
    )
    across = max(1, round((WIDTH - 160) / len(starts))) * len(starts)
    note = f"a cell is the busiest of {width} experts" if width > 1 else "tokens over the layer's mean"
    return _framed(cells, across, _layer_step(layers)), note, data


def _peaks(load: views.ExpertLoad) -> alt.Chart:
    series = {"busiest expert": load.expert_peak, "busiest rank": load.rank_peak}
    names = list(series)
    data = style.rows(
        layer=np.tile(load.layers, len(names)),
        place=np.repeat(names, len(load.layers)),
        ratio=np.concatenate(list(series.values())),
    )
    scale, legend = style.palette(names), style.legend(orient="bottom", direction="vertical")
    chart = alt.Chart(data).mark_line(point=True, strokeWidth=1.5)
    chart = chart.encode(
        y=alt.Y("layer:O", axis=None),
        x=alt.X("ratio:Q", axis=style.axis("max / mean", tickCount=4), scale=alt.Scale(zero=False, nice=True)),
        order=alt.Order("layer:Q"),
        color=alt.Color("place:N", scale=scale, legend=legend),
        tooltip=[
            alt.Tooltip("layer:O"),
            alt.Tooltip("place:N"),
            alt.Tooltip("ratio:Q", title="max / mean", format=".3g"),
        ],
    )
    heading = style.title("Imbalance", "mean over samples")
    return _framed(chart, 150, _layer_step(len(load.layers)), heading)


def _layer_step(layers: int) -> alt.Step:
    return alt.Step(min(24, max(5, round(380 / layers))))


def _pipeline(columns: Columns) -> alt.Chart:
    runs = views.whole_step(columns, MAX_RUNS)
    finish = float(columns["end_mean"].max())
    factor, symbol = style.axis_unit([finish], "s")
    names = sorted(set(runs.phase), key=_phase_order)
    whole = {"stage": runs.stage, "phase": runs.phase, "microbatch": runs.microbatch, "chunk": runs.chunk}
    data = style.rows(**whole, begin=runs.begin / factor, end=runs.end / factor)
    shown, stages = len(np.unique(runs.stage)), len(np.unique(columns["stage"]))
    note = f"{shown} of {stages} stages" if shown < stages else "every bar is a microbatch"
    outline = 0.4 if len(runs.stage) < 100 * shown else 0.0
    lane = {"yOffset": alt.YOffset("phase:N", sort=names)} if views.overlapping(runs) else {}
    legend = style.legend("phase", orient="top")
    chart = alt.Chart(data, name="pipeline").mark_bar(stroke="white", strokeWidth=outline, clip=True)
    chart = chart.encode(
        **_time_axis(symbol, (0.0, finish / factor)),
        **lane,
        y=_lanes("stage:O", "pipeline stage"),
        color=alt.Color("phase:N", sort=names, scale=style.palette(names), legend=legend),
        tooltip=["stage:O", "phase:N", "microbatch:Q", "chunk:Q", *_times(symbol)],
    )
    heading = style.title("Pipeline over one step", f"{note}; drag to move, wheel to zoom")
    height = alt.Step(min(32, max(8, round(280 / max(1, shown)))))
    return _framed(chart.add_params(_zoom("pipeline_zoom")), WIDTH, height, heading)


def _operations(columns: Columns) -> alt.Chart:
    window = views.middle_window(columns, WINDOW_STAGES, MAX_WINDOW)
    middle = views.middle_window(window, WINDOW_STAGES, SHOWN_WINDOW)
    factor, symbol = style.axis_unit([float(window["end_mean"].max())], "s")
    seen = (float(middle["begin_mean"].min()) / factor, float(middle["end_mean"].max()) / factor)
    kinds, _ = views.categories(window["kind"])
    lanes = [f"{stage} · {stream}" for stage in np.unique(window["stage"]) for stream in _STREAMS]
    data = style.rows(
        lane=[f"{stage} · {stream}" for stage, stream in zip(window["stage"], window["stream"], strict=True)],
        begin=window["begin_mean"] / factor,
        end=window["end_mean"] / factor,
        **{name: window[name] for name in ("kind", "phase", "microbatch", "layer")},
    )
    chart = alt.Chart(data, name="operations").mark_bar(clip=True)
    chart = chart.encode(
        **_time_axis(symbol, seen),
        y=_lanes("lane:N", "stage · stream", sort=lanes),
        color=alt.Color("kind:N", scale=style.palette(kinds), legend=style.legend("operation", orient="top")),
        tooltip=["lane:N", "kind:N", "phase:N", "microbatch:Q", "layer:Q", *_times(symbol)],
    )
    heading = style.title("Operations around the middle of the step", "mean over the ranks of the stage")
    return _framed(chart.add_params(_zoom("operations_zoom")), WIDTH, alt.Step(20), heading)


def _phase_order(phase: str) -> tuple[int, str]:
    known = ("forward", "backward", "weight", "step")
    return (known.index(phase) if phase in known else len(known)), phase


def _lanes(field: str, label: str, **options: Any) -> alt.Y:
    axis = style.axis(label, labelLimit=190, minExtent=120)
    return alt.Y(field, axis=axis, scale=alt.Scale(paddingInner=0.12), **options)


def _time_axis(symbol: str, domain: tuple[float, float]) -> dict[str, Any]:
    axis = style.axis(f"time ({symbol})")
    return {"x": alt.X("begin:Q", axis=axis, scale=style.span(*domain)), "x2": alt.X2("end:Q")}


def _times(symbol: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", title=f"{name} ({symbol})", format=".6g") for name in ("begin", "end")]


def _zoom(name: str) -> alt.Parameter:
    return alt.selection_interval(name=name, bind="scales", encodings=["x"])


def _cells(chart: alt.Chart, sides: dict[str, tuple[str, int]], width: int) -> alt.Chart:
    """Rectangles from a field's value to `width` beyond it, cut at the size; `sides`: channel -> (field, size)."""
    chart = chart.mark_rect()
    for side, (field, size) in sides.items():
        chart = chart.transform_calculate(**{f"{side}_end": f"min(datum.{field} + {width}, {size})"})
        chart = chart.encode(**{f"{side}2": f"{side}_end:Q"})
    return chart


def _whole(size: int, **options: Any) -> dict[str, Any]:
    """A position scale of cells that ends on whole pixels: between them no background shines through."""
    return style.span(0, size, round=True, **options)


def _absent(title: str, why: str) -> alt.Chart:
    text = (
        alt.Chart(style.rows(why=[why])).mark_text(fontSize=14, color=INK, limit=WIDTH).encode(text=alt.Text("why:N"))
    )
    return _framed(text, WIDTH, 80, style.title(title, ""))


def _framed(chart: alt.Chart, width: int, height: int | alt.Step, title: dict[str, Any] | None = None) -> alt.Chart:
    heading = {"title": title} if title else {}
    framed: alt.Chart = chart.properties(width=width, height=height, **heading)
    return framed
