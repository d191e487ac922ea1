"""A result as one HTML page that opens without a network: tables, interactive pictures, notes and the scenario."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from moesim.results import views
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
from moesim.results.result import Result
from moesim.results.table import summary_rows
from moesim.units import show

_HEADLINE = (
    "step_time",
    "tokens_per_second_per_gpu",
    "model_flops_utilization",
    "communication_fraction",
    "memory_per_gpu",
    "cost",
)


def write_html(result: Result) -> str:
    """The page as text, about 1 to 3 MB; one result always gives the same text."""
    return html_page(result.name, _body(result))


def _body(result: Result) -> Iterable[str]:
    rows = summary_rows(result)
    yield f'<header>\n<p class="road">moesim · {escape(result.road)}d</p>\n<h1>{escape(result.name)}</h1>'
    yield f'<p class="question">{escape(result.question)}</p>\n{html_tiles(rows, _HEADLINE)}\n</header>'
    yield f"<main>\n<h2>Summary</h2>\n{html_summary(rows)}"
    charts = result.charts
    step, memory = result.parts("step_time"), result.parts("memory_per_gpu")
    yield html_picture("breakdown", "Time", charts.breakdown(), html_parts(step, "time"), len(step))
    yield html_picture("memory", "Memory", charts.memory(), html_parts(memory, "bytes"), len(memory))
    yield html_picture("expert-load", "Experts", charts.expert_load(), _load(result))
    yield html_picture("traffic", "Traffic", charts.traffic(), _traffic(result))
    yield html_picture("timeline", "Timeline", charts.timeline(), _kinds(result))
    yield f"{html_notes(result.notes)}\n{html_scenario(result.scenario)}\n</main>"


def _load(result: Result) -> str:
    if result.routing_columns is None or not len(result.routing_columns["tokens"]):
        return ""
    load = views.expert_load(result.routing_columns)
    busiest = load.experts[load.load.argmax(axis=1)]
    rows = (
        (str(layer), str(expert), f"{of_expert:.3g}", f"{of_rank:.3g}", show(idle, "fraction"))
        for layer, expert, of_expert, of_rank, idle in zip(
            load.layers, busiest, load.expert_peak, load.rank_peak, load.idle, strict=True
        )
    )
    return html_table(("layer", "busiest expert", "expert max / mean", "rank max / mean", "idle experts"), rows)


def _traffic(result: Result) -> str:
    if result.traffic is None or not result.traffic.size:
        return ""
    ranks = views.rank_totals(result.traffic)
    rows = ((str(row.first), *(show(number, "B") for number in (row.own, row.sent, row.received))) for row in ranks)
    rank = "rank" if len(ranks) == len(result.traffic) else f"from rank (mean of {len(result.traffic) // len(ranks)})"
    return html_table((rank, "to itself", "to others", "from others"), rows)


def _kinds(result: Result) -> str:
    if result.operation_columns is None or not len(result.operation_columns["begin"]):
        return ""
    rows = (
        (row.kind, row.stream, f"{row.operations:,}", *shown)
        for row in views.by_kind(views.first_step(result.operation_columns))
        for shown in [(show(row.seconds, "s"), show(row.bytes_up, "B"), show(row.bytes_out, "B"))]
    )
    heads = ("operation", "stream", "count", "time a stage", "bytes scale-up", "bytes scale-out")
    return html_table(heads, rows, texts=2)
