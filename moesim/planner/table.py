"""A plan as text for the terminal: candidates worth reading, why the rest was rejected, models side by side."""

from __future__ import annotations

from collections.abc import Iterator

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.planner.explain import LIMIT_CODES, degrees, hardware, settings
from moesim.planner.plan import ModelPlan, Plan, Row
from moesim.provenance import Quantity
from moesim.results.table import plain_table, shown_range
from moesim.units import show

MOST_ESTIMATED = 5
"""Rows of the front that were estimated alone."""
ROADS = {"simulate": "simulated", "estimate": "by the closed form: other GPUs, and the Pareto front"}
UNITS = {"dollars": "$", "dropped_fraction": "fraction", "power": "W", "memory_headroom": "fraction"}
"""Units of limits; days and GPUs are plain numbers."""
LEGEND = (
    "TP tensor, PP pipeline (x chunks a rank), EP expert, ETP expert-tensor, CP context parallel, MB micro-batch;"
    " * on the Pareto front of time, cost, memory headroom and drops; ranges hold 90 %"
)


def pieces(plan: Plan) -> Iterator[Table | Text | Padding]:
    """Everything that is printed, in order."""
    if plan.spec.question:
        yield Text(plan.spec.question, style="bold")
    if len(plan.models) > 1:
        yield side_by_side(plan)
    for model in plan.models:
        yield Text(headline(plan, model), style="bold")
        if model.rows or model.closest:
            yield candidates_table(model)
        yield rejected_table(model)
        for sentence in model.words:
            yield Padding(Text(f"- {sentence}"), (0, 0, 0, 0))
        yield Text("")


def headline(plan: Plan, model: ModelPlan) -> str:
    """What was asked and how many candidates there were."""
    said = (
        f"{model.model}: {model.total:,} combinations, {model.screened:,} screened, {model.feasible:,} keep all limits"
    )
    limits = plan.spec.limits.model_dump(mode="json", exclude_none=True)
    within = ", ".join(f"{name} {show(value, UNITS.get(name, ''))}" for name, value in limits.items())
    return f"{said}; objective: {plan.spec.objective}" + (f"; limits: {within}" if within else "")


def candidates_table(model: ModelPlan) -> Table:
    """The simulated candidates, then estimated ones of the Pareto front; the closest one where nothing is feasible."""
    rows = shown_rows(model)
    dropping = any(row.figures.dropped[0] > 0 for row in rows)
    table = plain_table("", first="#")
    table.title, table.caption = None, Text(LEGEND)
    table.columns[0].min_width, table.columns[0].no_wrap = 2, True
    table.add_column("GPUs and layout", overflow="fold", min_width=20, ratio=1)
    for heading in ("time", "cost", "memory", *["drops"] * dropping):
        table.add_column(
            heading if model.whole_run or heading == "memory" else f"{heading} / 1B", justify="right", no_wrap=True
        )
    heading = ""
    for place, row in enumerate(rows, 1):
        said = ROADS[row.road] if model.rows else "the closest"
        if said != heading:
            table.add_section()
            table.add_row("", Text(said, style="bold"))
            heading = said
        table.add_row(Text(f"{place}{'*' if row.pareto else ''}"), *_cells(row, dropping, is_own(model, row)))
    return table


def is_own(model: ModelPlan, row: Row) -> bool:
    """Whether a row is the layout that the plan's scenario states itself."""
    return model.own is not None and model.own.row.scenario == row.scenario


def shown_rows(model: ModelPlan) -> tuple[Row, ...]:
    """The rows of the table."""
    if not model.rows:
        return (model.closest,) if model.closest else ()
    simulated = tuple(row for row in model.rows if row.road == "simulate")
    estimated = [row for row in model.rows if row.road == "estimate"]
    spread = estimated[:: max(1, -(-len(estimated) // MOST_ESTIMATED))]
    elsewhere = [row for row in model.best_by_gpu if all(row is not one for one in (*simulated, *spread))]
    return (*simulated, *elsewhere, *spread)


def _cells(row: Row, dropping: bool, own: bool = False) -> list[Text]:
    cells = [
        Text(f"{hardware(row)}: {degrees(row)}{' (your layout)' if own else ''}").append(
            f"\n{settings(row)}", style="dim"
        ),
        _with_range(row.summary["training_time"]),
        _with_range(cost_of(row)),
        Text(show(float(row.figures.memory_share[0]), "fraction")),
    ]
    return cells + ([Text(show(round(float(row.figures.dropped[0]), 6), "fraction"))] if dropping else [])


def cost_of(row: Row) -> Quantity:
    """Dollars, or GPU-hours where there are no prices."""
    return row.summary.get("cost", row.summary["gpu_hours"])


def _with_range(quantity: Quantity) -> Text:
    """The value, its range on the line below."""
    found = Text(show(quantity.value, quantity.unit))
    spread = shown_range(quantity)
    return found.append(f"\n{spread}", style="dim") if spread else found


def rejected_table(model: ModelPlan) -> Table:
    """How many candidates fell to which reason; every one has exactly one."""
    table = plain_table("Rejected, each by its binding reason", first="reason")
    table.columns[0].no_wrap, table.columns[0].min_width = True, 8
    table.add_column("candidates", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold", min_width=20, ratio=1)
    ours = [code for code in model.rejected if code in LIMIT_CODES]
    for code in ordered_reasons(model):
        count = model.rejected[code]
        if ours and code == next((other for other in model.rejected if other not in LIMIT_CODES), ""):
            table.add_section()
        table.add_row(code, f"{count:,}", show(count / model.total, "fraction"), Text(model.meanings[code]))
    return table


def ordered_reasons(model: ModelPlan) -> list[str]:
    """The reasons: limits first, then the rules of layouts; the most frequent first in either."""
    return sorted(model.rejected, key=lambda code: code not in LIMIT_CODES)


def side_by_side(plan: Plan) -> Table:
    """The winner of every model."""
    table = plain_table("Models side by side", first="model")
    table.columns[0].min_width = 8
    table.add_column("GPUs and layout", overflow="fold", min_width=20, ratio=1)
    for heading in ("time", "cost", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in plan.models:
        if model.winner is None:
            table.add_row(Text(model.model), Text("nothing keeps all limits"), "", "", "")
        else:
            table.add_row(Text(model.model), *_cells(model.winner, False))
    return table
