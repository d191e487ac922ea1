"""Pictures of a look at a router's recording: load, locality, imbalance and its sources, drops, co-activation."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
from altair.typing import ChartType
from numpy.typing import NDArray

from moesim.results import chart_style as style
from moesim.results import views
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.charts import MAX_CELLS, MAX_EXPERT_BLOCKS, _absent, _cells, _framed, _layer_step
from moesim.traces.inspection import Inspection

MOST_PAIRED = 128
_HEIGHT = 260
_COUNTS_ONLY = "the recording holds counts, not each token's choices"
_SOURCES = ("popularity of experts", "the batch's own sequences", "sampling")
_SOURCE_COLOURS = ("#0072B2", "#E69F00", "#999999")


class TraceCharts:
    """Pictures of one inspection as altair charts; where the data are absent, a chart that says why."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection

    def load(self) -> ChartType:
        """Tokens of every expert over its layer's mean, whole recording."""
        copies, meta = self._inspection.load.copies, self._inspection.meta
        layers, experts = copies.shape
        ratio = copies / np.maximum(copies.mean(axis=1, keepdims=True), 1e-300)
        width, starts = views.blocks(experts, min(MAX_EXPERT_BLOCKS, max(1, MAX_CELLS // layers)))
        busiest = np.maximum.reduceat(ratio, starts, axis=1)
        layer, place = (index.ravel() for index in np.indices(busiest.shape))
        data = style.rows(4, layer=np.array(meta.model_layers)[layer], expert=starts[place], load=busiest.ravel())
        scale = alt.Scale(scheme="blueorange", domain=[0, 1, max(float(busiest.max()), 2.0)])
        chart = _cells(alt.Chart(data), {"x": ("expert", experts)}, width).encode(
            x=alt.X("expert:Q", axis=style.axis("expert", grid=False), scale=style.span(0, experts)),
            y=alt.Y("layer:O", axis=style.axis("model layer")),
            color=alt.Color("load:Q", scale=scale, legend=style.legend("tokens / mean")),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("expert:Q"),
                alt.Tooltip("load:Q", title="tokens / mean", format=".3g"),
            ],
        )
        note = f"a cell is the busiest of {width} experts" if width > 1 else "tokens over the layer's mean"
        across = max(1, round((WIDTH - 60) / len(starts))) * len(starts)
        return _framed(chart, across, _layer_step(layers), style.title("Load of experts by layer", note))

    def locality(self) -> ChartType:
        """Experts shared with an earlier token of the sequence, by distance."""
        title, found = "Experts shared with an earlier token", self._inspection.locality
        if found is None or not found.lags:
            return _absent(title, _COUNTS_ONLY if found is None else "no sequence is longer than one token")
        low, high = np.nanmin(found.overlap, axis=1), np.nanmax(found.overlap, axis=1)
        independent, top = float(found.independent.mean()), float(max(high.max(), found.independent.mean()))
        data = style.rows(5, lag=list(found.lags), mean=np.nanmean(found.overlap, axis=1), low=low, high=high)
        scale = alt.Scale(type="log", base=2, domain=[1, max(2, found.lags[-1])], nice=False)
        base = alt.Chart(data).encode(
            x=alt.X("lag:Q", axis=style.axis("tokens before", values=list(found.lags)), scale=scale),
            tooltip=[
                alt.Tooltip("lag:Q"),
                *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("mean", "low", "high")),
            ],
        )
        axis = style.axis("share of a token's experts", format="%")
        y = alt.Y("mean:Q", axis=axis, scale=style.span(0.0, min(1.0, 1.08 * top)))
        band = base.mark_area(opacity=0.2, color="#0072B2").encode(
            y=alt.Y("low:Q", axis=axis, scale=style.span(0.0, min(1.0, 1.08 * top))), y2=alt.Y2("high:Q")
        )
        line = base.mark_line(point={"color": "#0072B2"}, color="#0072B2").encode(y=y)
        rule, label = _rule(independent, "independent draws by popularity")
        heading = style.title(title, "mean of layers; the band spans all layers")
        return alt.layer(band, line, rule, label).properties(width=WIDTH - 60, height=_HEIGHT, title=heading)

    def imbalance(self) -> ChartType:
        """Busiest over mean, over experts and over expert-parallel ranks, by sequences in a batch."""
        title, found = "Imbalance by batch and expert parallelism", self._inspection.imbalance
        sizes = sorted({row.sequences for row in found} - {0}) or [0]
        names = ["experts", *(f"{ranks} ranks" for ranks in sorted({row.ranks for row in found} - {0}, reverse=True))]
        data = style.rows(
            5,
            batch=[_batch(row.sequences) for row in found],
            over=[f"{row.ranks} ranks" if row.ranks else "experts" for row in found],
            ratio=[row.max_over_mean for row in found],
            p95=[row.p95 for row in found],
            balancedness=[row.mean_over_max for row in found],
            tokens=[row.tokens for row in found],
        )
        numbers = {"ratio": "max / mean", "p95": "95th percentile", "balancedness": "mean / max", "tokens": "tokens"}
        chart = _by_batch(alt.Chart(data), sizes, ("over", "over", names)).encode(
            y=alt.Y("ratio:Q", axis=style.axis("busiest / mean"), scale=alt.Scale(zero=False, nice=True)),
            tooltip=[
                "batch:N",
                "over:N",
                *(alt.Tooltip(f"{name}:Q", title=title, format=".4g") for name, title in numbers.items()),
            ],
        )
        heading = style.title(title, "mean over batches and layers; experts in order on their ranks")
        return _framed(chart, WIDTH - 160, _HEIGHT, heading)

    def sources(self) -> ChartType:
        """Where the imbalance of a batch comes from: popularity, its sequences, sampling."""
        title, found = "Sources of imbalance", self._inspection.sources
        if not found:
            return _absent(title, _COUNTS_ONLY)
        parts = [(row.popularity, row.sequence, row.sampling) for row in found]
        data = style.rows(
            5,
            batch=[_batch(row.sequences) for row in found for _ in _SOURCES],
            source=list(_SOURCES) * len(found),
            order=list(range(len(_SOURCES))) * len(found),
            excess=[max(0.0, part) for row in parts for part in row],
        )
        sizes = [_batch(row.sequences) for row in found]
        colour = {"domain": list(_SOURCES), "range": list(_SOURCE_COLOURS)}
        chart: alt.Chart = (
            alt.Chart(data)
            .mark_bar(stroke="white", strokeWidth=1)
            .encode(
                y=alt.Y("batch:N", sort=sizes, axis=style.axis("batch")),
                x=alt.X("excess:Q", stack=True, axis=style.axis("busiest / mean - 1, over experts")),
                color=alt.Color("source:N", sort=list(_SOURCES), scale=colour, legend=style.legend(orient="bottom")),
                order=alt.Order("order:Q"),
                tooltip=[alt.Tooltip("batch:N"), alt.Tooltip("source:N"), alt.Tooltip("excess:Q", format=".3f")],
            )
        )
        note = "placement mends popularity, larger or mixed batches mend sequences, nothing mends sampling"
        return _framed(chart, WIDTH - 120, alt.Step(28), style.title(title, note))

    def drops(self) -> ChartType:
        """Share of token copies beyond capacity, by capacity factor and sequences in a batch."""
        found = self._inspection.drops
        names = [_batch(row.sequences) for row in found]
        data = style.rows(
            5,
            batch=[name for name, row in zip(names, found, strict=True) for _ in row.factors],
            factor=[factor for row in found for factor in row.factors],
            dropped=np.concatenate([row.dropped for row in found]),
        )
        factors = list(found[0].factors)
        chart: alt.Chart = (
            alt.Chart(data)
            .mark_line(point=True, strokeWidth=1.8)
            .encode(
                x=alt.X(
                    "factor:Q",
                    axis=style.axis("capacity factor (choices included)", values=factors, format=".3~f"),
                    scale=style.span(factors[0], factors[-1]),
                ),
                y=alt.Y("dropped:Q", axis=style.axis("copies dropped", format="%"), scale=alt.Scale(zero=True)),
                color=_ordered("batch", "batch", names),
                tooltip=[alt.Tooltip("batch:N"), alt.Tooltip("factor:Q"), alt.Tooltip("dropped:Q", format=".2%")],
            )
        )
        heading = style.title("Drops by capacity", "mean over batches and layers, capacity of the whole batch")
        return _framed(chart, WIDTH - 160, _HEIGHT, heading)

    def coactivation(self, layer: int | None = None) -> ChartType:
        """Phi of every pair of experts in a token, in one recorded layer (by default the one of the strongest pair)."""
        title, found = "Experts chosen together", self._inspection.coactivation
        if found is None or found.phi.shape[1] < 2:
            return _absent(title, _COUNTS_ONLY if found is None else "the model has one expert")
        index = int(np.argmax(found.strongest[:, 0])) if layer is None else layer
        phi, names = _busiest(found.phi[index], self._inspection.load.copies[index])
        size = len(names)
        first, second = (place.ravel() for place in np.indices(phi.shape))
        strong = max(float(np.abs(phi).max()), 0.01)
        data = style.rows(3, x=first, y=second, phi=phi.ravel(), expert=names[first], other=names[second])
        axis = "expert" if size == len(found.phi[index]) else f"{size} busiest experts, in order"
        chart = _cells(alt.Chart(data), {"x": ("x", size), "y": ("y", size)}, 1).encode(
            x=alt.X("x:Q", axis=style.axis(axis, grid=False), scale=style.span(0, size)),
            y=alt.Y("y:Q", axis=style.axis(axis, grid=False), scale=style.span(0, size, reverse=True)),
            color=alt.Color(
                "phi:Q",
                scale=alt.Scale(scheme="blueorange", domain=[-strong, 0, strong]),
                legend=style.legend("phi", format=".2f"),
            ),
            tooltip=[alt.Tooltip("expert:Q"), alt.Tooltip("other:Q"), alt.Tooltip("phi:Q", format=".2f")],
        )
        pixels = max(2, round(420 / size)) * size
        low, high = found.low[index][0], found.high[index][0]
        strongest = f"strongest pair {low} and {high}, phi {found.strongest[index][0]:.2f}"
        where = f"model layer {self._inspection.meta.model_layers[index]}; {strongest}"
        return _framed(chart, pixels, pixels, style.title(title, where))


def _batch(sequences: int) -> str:
    if sequences == 0:
        return "all"
    return "1 sequence" if sequences == 1 else f"{sequences} sequences"


def _by_batch(chart: alt.Chart, sizes: list[int], series: tuple[str, str, list[str]]) -> alt.Chart:
    """Lines over batch sizes; `series`: field, legend, and names in their order."""
    names = [_batch(size) for size in sizes]
    made: alt.Chart = chart.mark_line(point=True, strokeWidth=1.8).encode(
        x=alt.X("batch:N", sort=names, axis=style.axis("batch", labelAngle=0), scale=alt.Scale(type="point")),
        color=_ordered(*series),
    )
    return made


def _ordered(field: str, label: str, names: list[str]) -> alt.Color:
    """A colour scale that goes from dark to light in the names' order, told apart under colour blindness."""
    scale = alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0.0, 0.85]), domain=names)
    return alt.Color(f"{field}:O", sort=names, scale=scale, legend=style.legend(label))


def _rule(at: float, text: str) -> tuple[alt.Chart, alt.Chart]:
    base = alt.Chart(style.rows(5, at=[at], text=[text])).encode(y=alt.Y("at:Q"))
    rule = base.mark_rule(color=INK, strokeDash=[6, 3], strokeWidth=1.5)
    label = base.mark_text(align="right", baseline="bottom", dx=-6, dy=-3, fontSize=FONT, color=INK)
    return rule, label.encode(text=alt.Text("text:N"), x=alt.value("width"))


def _busiest(phi: NDArray[Any], copies: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The part of the matrix of the busiest experts, and their names in order."""
    names = np.sort(np.argsort(-copies, kind="stable")[:MOST_PAIRED])
    return phi[np.ix_(names, names)], names
