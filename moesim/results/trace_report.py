"""A look at a router's recording as one HTML page that opens without a network, like a result's report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape

import numpy as np

from moesim.files import write_whole
from moesim.results.page import html_page, html_picture, html_table
from moesim.results.trace_charts import TraceCharts
from moesim.traces.inspection import Inspection
from moesim.units import show


def write_report(inspection: Inspection, path: str | os.PathLike[str]) -> None:
    """Writes the page, the whole file or none; one inspection always gives the same page."""
    write_whole(path, page(inspection))


def page(inspection: Inspection) -> str:
    """The page as text."""
    title = _title(inspection)
    return html_page(title, _body(inspection, title))


def _title(inspection: Inspection) -> str:
    return f"Router of {inspection.meta.model}" if inspection.meta.model else "Recorded router"


def _body(inspection: Inspection, title: str) -> Iterable[str]:
    meta, charts = inspection.meta, TraceCharts(inspection)
    size = f"{inspection.tokens:,.0f} tokens, {inspection.sequences:,} sequences, {len(meta.model_layers)} layers"
    yield f'<header>\n<p class="road">moesim · recorded router</p>\n<h1>{escape(title)}</h1>'
    yield f'<p class="question">{escape(f"{size}, {meta.experts} experts, {meta.top_k} a token")}</p>\n</header>'
    yield f"<main>\n<h2>Summary</h2>\n{_summary(inspection)}"
    yield html_picture("load", "Load", charts.load(), _layers(inspection))
    yield html_picture("imbalance", "Imbalance", charts.imbalance(), _imbalances(inspection))
    yield html_picture("sources", "Sources of imbalance", charts.sources(), "", len(inspection.sources))
    yield html_picture("drops", "Drops", charts.drops(), _drops(inspection))
    yield html_picture("locality", "Locality", charts.locality(), "")
    yield html_picture("coactivation", "Co-activation", charts.coactivation(), _pairs(inspection))
    known = {name: value for name, value in meta.model_dump(mode="json").items() if value not in ("", [""], None)}
    lines = [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for name, value in known.items()
    ]
    yield f"<h2>Recording</h2>\n{html_table(('entry', 'value'), lines, texts=2)}\n</main>"


def _summary(inspection: Inspection) -> str:
    """What has no table of its own further down."""
    lines = (
        (group, what, show(value, unit) if unit == "fraction" else _number(value, unit))
        for group, what, value, unit in inspection.rows()
        if group not in ("imbalance", "drops")
    )
    return html_table(("group", "measure", "value"), lines, texts=2)


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}" + (f" {unit}" if unit not in ("ratio", "") else "")


def _layers(inspection: Inspection) -> str:
    load = inspection.load
    columns = (load.max_over_mean, load.variation, load.zipf_slope, load.entropy)
    lines = (
        (str(layer), *(f"{column[index]:.3g}" for column in columns), show(float(load.idle[index]), "fraction"))
        for index, layer in enumerate(inspection.meta.model_layers)
    )
    return html_table(("layer", "max / mean", "deviation / mean", "rank slope", "entropy", "idle experts"), lines)


def _imbalances(inspection: Inspection) -> str:
    lines = (
        (
            str(row.sequences or "all"),
            str(row.ranks or "experts"),
            *(
                f"{value:.3g}"
                for value in (row.max_over_mean, row.p95, row.mean_over_max, row.ratio_of_sums, row.excess)
            ),
        )
        for row in inspection.imbalance
    )
    heads = (
        "sequences",
        "over ranks",
        "max / mean",
        "95th percentile",
        "mean / max",
        "ratio of sums",
        "(max - mean) / mean",
    )
    return html_table(heads, lines, texts=0)


def _drops(inspection: Inspection) -> str:
    heads = ("capacity factor", *(str(row.sequences or "all") + " sequences" for row in inspection.drops))
    shares = np.array([row.dropped for row in inspection.drops]).T
    lines = (
        (f"{factor:g}", *(show(float(share), "fraction") for share in row))
        for factor, row in zip(inspection.drops[0].factors, shares, strict=True)
    )
    return html_table(heads, lines, texts=0)


def _pairs(inspection: Inspection) -> str:
    found = inspection.coactivation
    if found is None or not found.strongest.size:
        return ""
    lines = (
        (str(layer), f"{found.low[index][0]} and {found.high[index][0]}", f"{found.strongest[index][0]:.2f}")
        for index, layer in enumerate(inspection.meta.model_layers)
    )
    return html_table(("layer", "strongest pair", "phi"), lines, texts=2)
