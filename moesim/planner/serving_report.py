"""A plan of serving as one HTML page that opens without a network: the answer in words, the Pareto front, the best
deployments, why the others were rejected, and the winner's scenario. Every text of the user is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from moesim.columns import SERVING
from moesim.planner.serving_explain import degrees, hardware, label, settings
from moesim.planner.serving_plan import Row, ServingModelPlan, ServingPlan
from moesim.planner.serving_table import LEGEND, ROADS, headline, heads, number, numbers, ordered_reasons, shown_rows
from moesim.results.page import _framed, html_notes, html_page, html_picture, html_scenario, html_table, html_tiles
from moesim.results.table import metric_rows, shown_range
from moesim.serving.table import GROUPS
from moesim.units import show

HEADLINE = ("time_to_first_token", "time_per_output_token", "output_tokens_per_second_per_gpu", "goodput_fraction",
            "cost_per_million_output_tokens", "gpu_hours_per_million_output_tokens")  # fmt: skip


def page(plan: ServingPlan) -> str:
    """The page as text, about 1 to 2 MB; one plan always gives the same text."""
    return html_page(plan.spec.name, _body(plan))


def _body(plan: ServingPlan) -> Iterator[str]:
    yield f'<header>\n<p class="road">moesim · plan</p>\n<h1>{escape(plan.spec.name)}</h1>'
    asked = f'<p class="question">{escape(plan.spec.question)}</p>' if plan.spec.question else ""
    yield f"{asked}\n</header>\n<main>"
    for place, model in enumerate(plan.models, 1):
        yield from _model(plan, model, place)
    yield "</main>"


def _model(plan: ServingPlan, model: ServingModelPlan, place: int) -> Iterator[str]:
    """The sections of one model."""
    winner = model.winner
    yield f"<h2>{escape(model.model)}: {escape(label(winner)) if winner else 'nothing keeps all limits'}</h2>"
    if winner is not None:
        yield f"<p>{escape(settings(winner))}; {escape(ROADS[winner.road].partition(':')[0])}</p>"
        yield html_tiles(metric_rows(winner.summary, GROUPS, SERVING), _told(winner))
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in model.words)
    yield f'<ul>\n{sentences}\n</ul>\n<p class="quiet">{escape(headline(plan, model))}</p>'
    if winner is not None:
        yield html_picture(f"front-{place}", "Latency against cost", model.chart(), _front(model), 1)
    if model.rows or model.closest:
        yield f"<h2>{'Best deployments' if model.rows else 'The closest deployment'}</h2>\n{_candidates(model)}"
    yield f"<h2>Rejected, each by its binding reason</h2>\n{_rejected(model)}\n{html_notes(model.notes)}"
    if winner is not None:
        yield html_scenario(winner.scenario.document())


def _told(row: Row) -> tuple[str, ...]:
    """The metrics that are told large; GPU-hours only where there are no prices."""
    return HEADLINE[:-1] if "cost_per_million_output_tokens" in row.summary else HEADLINE


def _candidates(model: ServingModelPlan) -> str:
    """The rows that the terminal shows, by the road that answered them."""
    lines, group = [], ""
    for place, row in enumerate(shown_rows(model), 1):
        if ROADS[row.road] != group:
            group = ROADS[row.road]
            said = f'<th colspan="{2 + len(heads(model))}" scope="colgroup">{escape(group)}</th>'
            lines.append(f'<tr class="group">{said}</tr>')
        cells = [f"<td>{escape(hardware(row))}: {escape(degrees(row))}<small>{escape(settings(row))}</small></td>"]
        for quantity in numbers(row):
            spread = shown_range(quantity) if quantity is not None else ""
            below = f"<small>{escape(spread)}</small>" if spread else ""
            cells.append(f'<td class="number">{escape(number(quantity))}{below}</td>')
        lines.append(f"<tr><td>{place}{'*' if row.pareto else ''}</td>{''.join(cells)}</tr>")
    titles = "".join(f'<th class="number">{name}</th>' for name in heads(model))
    return _framed(f"<th>#</th><th>GPUs and engines</th>{titles}", lines) + f'\n<p class="quiet">{escape(LEGEND)}</p>'


def _front(model: ServingModelPlan) -> str:
    """The answered deployments on the Pareto front."""
    lines = [
        (
            hardware(row),
            degrees(row),
            "simulated" if row.road == "simulate" else "closed form",
            *map(number, numbers(row)),
        )
        for row in model.pareto
    ]
    return html_table(("GPUs", "engines", "by", *heads(model)), lines, texts=3)


def _rejected(model: ServingModelPlan) -> str:
    """How many combinations fell to which reason, what it means below its name."""
    head = '<th>reason</th><th class="number">combinations</th><th class="number">share</th>'
    lines = []
    for code in ordered_reasons(model):
        count = model.rejected[code]
        shares = f'<td class="number">{count:,}</td><td class="number">{show(count / model.total, "fraction")}</td>'
        lines.append(f"<tr><td>{escape(code)}<small>{escape(model.meanings[code])}</small></td>{shares}</tr>")
    return _framed(head, lines)
