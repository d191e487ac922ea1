"""A serving result as one HTML page that opens without a network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np

from moesim.results.page import (
    html_notes,
    html_page,
    html_parts,
    html_picture,
    html_scenario,
    html_summary,
    html_table,
    html_tiles,
)
from moesim.serving.result import ServingResult
from moesim.serving.table import iterations_by_phase, quantities, serving_rows
from moesim.units import show

_LATENCIES = {
    "simulate": ("time_to_first_token", "time_to_first_token_p99", "time_per_output_token"),
    "estimate": ("time_to_first_token_mean", "time_per_output_token_mean"),
}
_HEADLINE = (
    "output_tokens_per_second_per_gpu",
    "goodput_fraction",
    "kv_cache_use",
    "cost_per_million_output_tokens",
)
_SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)


def write_serving_html(result: ServingResult) -> str:
    """The page as text, about 1 to 2 MB; one result always gives the same text."""
    return html_page(result.name, _body(result))


def _body(result: ServingResult) -> Iterable[str]:
    rows, charts = serving_rows(result), result.charts
    tiles = html_tiles(rows, (*_LATENCIES[result.road], *_HEADLINE))
    yield f'<header>\n<p class="road">moesim · serving, {escape(result.road)}d</p>\n<h1>{escape(result.name)}</h1>'
    yield f'<p class="question">{escape(result.question)}</p>\n{tiles}\n</header>'
    yield f"<main>\n<h2>Summary</h2>\n{html_summary(rows)}"
    yield html_picture("latency", "Latency", charts.latency(), _percentiles(result))
    yield html_picture("batch", "Batch", charts.batch(), "")
    yield html_picture("kv-cache", "KV cache", charts.kv_cache(), "")
    yield html_picture("imbalance", "Imbalance", charts.imbalance(), "")
    phases = iterations_by_phase(result.breakdown)
    tables = "\n".join(
        f"<h3>{escape(phase)}</h3>\n{html_parts(quantities(parts, 's'), 'time')}" for phase, parts in phases.items()
    )
    yield html_picture("breakdown", "Iterations", charts.breakdown(), tables)
    memory = quantities(result.memory, "B")
    yield html_picture("memory", "Memory", charts.memory(), html_parts(memory, "bytes"), len(memory))
    yield f"{html_notes(result.notes)}\n{html_scenario(result.scenario)}\n</main>"


def _percentiles(result: ServingResult) -> str:
    """Percentiles of the latencies."""
    columns = result.request_columns
    if columns is None or not len(columns["latency"]):
        return ""
    names = ("time_to_first_token", "time_per_output_token", "latency")
    rows = (
        (f"{100 * share:g} %", *(show(float(np.quantile(columns[name], share)), "s") for name in names))
        for share in _SHARES
    )
    return html_table(("requests", "time to first token", "time per output token", "latency"), rows)
