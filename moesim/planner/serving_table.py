"""A plan of serving as text for the terminal: deployments worth reading, why the rest was rejected, models."""

from __future__ import annotations

from collections.abc import Iterator

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.planner.serving_explain import degrees, hardware, settings
from moesim.planner.serving_plan import Row, ServingModelPlan, ServingPlan
from moesim.planner.serving_space import MEANINGS
from moesim.planner.table import MOST_ESTIMATED
from moesim.provenance import Quantity
from moesim.results.table import plain_table, shown_range
from moesim.units import show

ROADS = {"simulate": "simulated (medians)", "estimate": "by the closed form (means): other GPUs, Pareto front"}
LEGEND = (
    "engines x their GPUs, TP tensor, PP pipeline, EP expert, ETP expert-tensor parallel, DP attention replicas;"
    " * on the Pareto front of cost, both latencies and tokens/s/GPU; ranges hold 90 %"
)
HEADS = ("first token", "per token", "tokens/s/GPU")
_UNITS = {"goodput_fraction": "fraction", "memory_headroom": "fraction", "gpus": "", "dollars_per_hour": "$",
          "dollars_per_million_tokens": "$"}  # fmt: skip


def pieces(plan: ServingPlan) -> Iterator[Table | Text | Padding]:
    """Everything that is printed, in order."""
    if plan.spec.question:
        yield Text(plan.spec.question, style="bold")
    for model in plan.models:
        yield Text(headline(plan, model), style="bold")
        if model.rows or model.closest:
            yield candidates_table(model)
        yield rejected_table(model)
        for sentence in model.words:
            yield Padding(Text(f"- {sentence}"), (0, 0, 0, 0))
        yield Text("")


def headline(plan: ServingPlan, model: ServingModelPlan) -> str:
    """What was asked and how many candidates there were."""
    said = f"{model.model}: {model.total:,} combinations, {model.judged:,} judged, {model.feasible:,} keep all limits"
    limits = model.question.limits.model_dump(mode="json", exclude_none=True)
    within = ", ".join(f"{name} {show(value, _UNITS.get(name, 's'))}" for name, value in limits.items())
    return f"{said}; objective: {plan.spec.objective}" + (f"; limits: {within}" if within else "")


def shown_rows(model: ServingModelPlan) -> tuple[Row, ...]:
    """The rows of the table: simulated, the best on other GPUs, some of the front; the closest where nothing is."""
    if not model.rows:
        return (model.closest,) if model.closest else ()
    simulated = tuple(row for row in model.rows if row.road == "simulate")
    estimated = [row for row in model.rows if row.road == "estimate"]
    spread = estimated[:: max(1, -(-len(estimated) // MOST_ESTIMATED))]
    elsewhere = [row for row in model.best_by_gpu if all(row.place != one.place for one in (*simulated, *spread))]
    return (*simulated, *elsewhere, *spread)


def candidates_table(model: ServingModelPlan) -> Table:
    """The deployments worth reading."""
    table = plain_table("", first="#")
    table.title, table.caption = None, Text(LEGEND)
    table.columns[0].min_width, table.columns[0].no_wrap = 2, True
    table.add_column("GPUs and engines", overflow="fold", min_width=20, ratio=1)
    for heading in heads(model):
        table.add_column(heading, justify="right", no_wrap=True)
    heading = ""
    for place, row in enumerate(shown_rows(model), 1):
        said = ROADS[row.road] if model.rows else "the closest"
        if said != heading:
            table.add_section()
            table.add_row("", Text(said, style="bold"))
            heading = said
        layout = Text(f"{hardware(row)}: {degrees(row)}").append(f"\n{settings(row)}", style="dim")
        first, each, *others = numbers(row)
        cells = [_with_range(first), _with_range(each), *(Text(number(one)) for one in others)]
        table.add_row(Text(f"{place}{'*' if row.pareto else ''}"), layout, *cells)
    return table


def heads(model: ServingModelPlan) -> tuple[str, ...]:
    """The headings of what `numbers` tells; cost is of a million output tokens."""
    return *HEADS, "$/M tokens" if model.question.priced else "GPU-h/M tokens"


def numbers(row: Row) -> tuple[Quantity | None, ...]:
    """What the columns of `heads` show; None where the row has it not."""
    gpu_hours = row.summary.get("gpu_hours_per_million_output_tokens")
    cost = row.summary.get("cost_per_million_output_tokens", gpu_hours)
    names = ("time_to_first_token", "time_per_output_token", "output_tokens_per_second_per_gpu")
    return (*(row.summary.get(name) for name in names), cost)


def number(quantity: Quantity | None) -> str:
    """The value; the heading tells the unit of a throughput and of a cost."""
    if quantity is None:
        return "–"
    return show(quantity.value, quantity.unit if quantity.unit == "s" else "")


def _with_range(quantity: Quantity | None) -> Text:
    """The value, its range on the line below."""
    found = Text(number(quantity))
    spread = shown_range(quantity) if quantity is not None else ""
    return found.append(f"\n{spread}", style="dim") if spread else found


def ordered_reasons(model: ServingModelPlan) -> list[str]:
    """The reasons: limits first, then the rules of layouts; the most frequent first in either."""
    return sorted(model.rejected, key=lambda code: code in MEANINGS)


def rejected_table(model: ServingModelPlan) -> Table:
    """How many combinations fell to which reason; every one has exactly one."""
    table = plain_table("Rejected, each by its binding reason", first="reason")
    table.columns[0].no_wrap, table.columns[0].min_width = True, 8
    table.add_column("combinations", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold", min_width=20, ratio=1)
    for code in ordered_reasons(model):
        count = model.rejected[code]
        table.add_row(code, f"{count:,}", show(count / model.total, "fraction"), Text(model.meanings[code]))
    return table
