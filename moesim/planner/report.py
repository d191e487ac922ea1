"""A plan as one HTML page that opens without a network: the answer in words, the Pareto front, the best candidates, why
the others were rejected, and the winner's scenario. Every text of the user is escaped (`moesim.results.page`).
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from moesim.planner.explain import degrees, hardware, label, settings
from moesim.planner.plan import ModelPlan, Plan, Row
from moesim.planner.table import LEGEND, ROADS, cost_of, headline, is_own, ordered_reasons, shown_rows
from moesim.provenance import Quantity
from moesim.results.page import _framed, html_notes, html_page, html_picture, html_scenario, html_table, html_tiles
from moesim.results.table import Row as Metric
from moesim.results.table import metric_label, shown, shown_range
from moesim.units import show

HEADLINE = ("training_time", "cost", "gpu_hours", "step_time", "model_flops_utilization", "memory_per_gpu")
"""The winner's metrics that are told large; GPU-hours only where there are no prices."""


def page(plan: Plan) -> str:
    """The page as text, about 1 to 2 MB; one plan always gives the same text."""
    return html_page(plan.spec.name, _body(plan))


def _body(plan: Plan) -> Iterator[str]:
    yield f'<header>\n<p class="road">moesim · plan</p>\n<h1>{escape(plan.spec.name)}</h1>'
    asked = f'<p class="question">{escape(plan.spec.question)}</p>' if plan.spec.question else ""
    yield f"{asked}\n</header>\n<main>"
    if len(plan.models) > 1:
        yield f"<h2>Models side by side</h2>\n{_side_by_side(plan)}"
    for number, model in enumerate(plan.models, 1):
        yield from _model(plan, model, number)
    yield "</main>"


def _side_by_side(plan: Plan) -> str:
    """The winner of every model."""
    lines = []
    for model in plan.models:
        row = model.winner
        cells = '<td colspan="4">nothing keeps all limits</td>' if row is None else "".join(_cells(row, False)[:4])
        lines.append(f"<tr><td>{escape(model.model)}</td>{cells}</tr>")
    return _framed(_heads("model", ["time", "cost", "memory"]), lines)


def _heads(first: str, numbers: list[str]) -> str:
    return f"<th>{first}</th><th>GPUs and layout</th>" + "".join(f'<th class="number">{name}</th>' for name in numbers)


def _model(plan: Plan, model: ModelPlan, number: int) -> Iterator[str]:
    """The sections of one model."""
    winner = model.winner
    yield f"<h2>{escape(model.model)}: {escape(label(winner)) if winner else 'nothing keeps all limits'}</h2>"
    if winner is not None:
        yield f"<p>{escape(settings(winner))}; {escape(ROADS[winner.road].partition(':')[0])}</p>\n{_tiles(winner)}"
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in model.words)
    yield f'<ul>\n{sentences}\n</ul>\n<p class="quiet">{escape(headline(plan, model))}</p>'
    if winner is not None:
        front = [row for row in model.rows if row.pareto]
        yield html_picture(f"front-{number}", "Time against cost", model.chart(), _front(front), 1)
    if model.rows or model.closest:
        yield f"<h2>{'Best candidates' if model.rows else 'The closest candidate'}</h2>\n{_candidates(model)}"
    yield f"<h2>Rejected, each by its binding reason</h2>\n{_rejected(model)}\n{html_notes(model.notes)}"
    if winner is not None:
        yield html_scenario(winner.scenario.document())


def _tiles(row: Row) -> str:
    told = {name: row.summary[name] for name in HEADLINE if name in row.summary}
    if "cost" in told:
        told.pop("gpu_hours", None)
    metrics = [
        Metric("", name, metric_label(name), shown(one.value, one.unit), shown_range(one), one.basis, one.note, "")
        for name, one in told.items()
    ]
    return html_tiles(metrics, HEADLINE)


def _candidates(model: ModelPlan) -> str:
    """The rows that the terminal shows, by the road that answered them."""
    rows = shown_rows(model)
    columns = ["time", "cost", "memory", *["drops"] * any(row.figures.dropped[0] > 0 for row in rows)]
    heads = [f"{name} / 1B" if name in ("time", "cost") and not model.whole_run else name for name in columns]
    lines, group = [], ""
    for number, row in enumerate(rows, 1):
        if ROADS[row.road] != group:
            group = ROADS[row.road]
            said = f'<th colspan="{2 + len(heads)}" scope="colgroup">{escape(group)}</th>'
            lines.append(f'<tr class="group">{said}</tr>')
        cells = "".join(_cells(row, is_own(model, row))[: 1 + len(heads)])
        lines.append(f"<tr><td>{number}{'*' if row.pareto else ''}</td>{cells}</tr>")
    return f'{_framed(_heads("#", heads), lines)}\n<p class="quiet">{escape(LEGEND)}</p>'


def _cells(row: Row, own: bool) -> list[str]:
    """Layout, time, cost, memory, drops."""
    layout = f"{escape(hardware(row))}: {escape(degrees(row))}{' (your layout)' if own else ''}"
    drops = show(round(float(row.figures.dropped[0]), 6), "fraction")
    numbers = [_ranged(row.summary["training_time"]), _ranged(cost_of(row))]
    numbers += [show(float(row.figures.memory_share[0]), "fraction"), drops]
    first = f"<td>{layout}<small>{escape(settings(row))}</small></td>"
    return [first, *(f'<td class="number">{number}</td>' for number in numbers)]


def _ranged(quantity: Quantity) -> str:
    """The value, its range on the line below."""
    spread = shown_range(quantity)
    below = f"<small>{escape(spread)}</small>" if spread else ""
    return f"{escape(show(quantity.value, quantity.unit))}{below}"


def _front(rows: list[Row]) -> str:
    """The answered candidates on the Pareto front."""
    lines = []
    for row in rows:
        time, cost = row.summary["training_time"], cost_of(row)
        memory = show(float(row.figures.memory_share[0]), "fraction")
        told = "simulated" if row.road == "simulate" else "closed form"
        figures = show(time.value, time.unit), show(cost.value, cost.unit), memory
        lines.append((hardware(row), degrees(row), told, *figures))
    return html_table(("GPUs", "layout", "by", "time", "cost", "memory"), lines, texts=3)


def _rejected(model: ModelPlan) -> str:
    """How many candidates fell to which reason, what it means below its name."""
    head = '<th>reason</th><th class="number">candidates</th><th class="number">share</th>'
    lines = []
    for code in ordered_reasons(model):
        count = model.rejected[code]
        numbers = f'<td class="number">{count:,}</td><td class="number">{show(count / model.total, "fraction")}</td>'
        lines.append(f"<tr><td>{escape(code)}<small>{escape(model.meanings[code])}</small></td>{numbers}</tr>")
    return _framed(head, lines)
