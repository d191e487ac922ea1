"""The error tables of a validation for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.results.table import plain_table
from moesim.validation.run import Row, Validation
from moesim.validation.statistics import Stats


def error_table(title: str, groups: dict[str, Stats]) -> Table:
    """Error statistics in percent, a line a group; "rank": rank correlation, "none": rows without an answer."""
    table = plain_table(f"{title}, %", first="group")
    table.columns[0].no_wrap = True
    for heading in ("rows", "median", "mean", "p90", "bias", "rank", "none"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, stats in groups.items():
        table.add_row(Text(shorten(name, 28)), *_cells(stats))
    return table


def _cells(stats: Stats) -> list[str]:
    correlation = stats["rank_correlation"]
    return [
        str(stats["n"]),
        *(_percent(stats[name]).removesuffix(" %") for name in ("median_ape", "mean_ape", "p90_ape")),
        _percent(stats["bias"], sign=True).removesuffix(" %"),
        "–" if correlation is None else f"{correlation:.3f}",
        str(stats["unpredicted"] or "–"),
    ]


def _percent(value: float | int | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f} %" if sign else f"{100 * value:.1f} %"


def worst_table(validation: Validation, most: int = 10) -> Table:
    """The cases that are furthest off, each with its stated tolerance."""
    rows = [row for row in validation.cases if row.error is not None]
    table = plain_table("Furthest off", first="case")
    table.add_column("metric", overflow="fold")
    for heading in ("measured", "predicted", "error", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -abs(row.error or 0.0))[:most]:
        table.add_row(Text(shorten(row.id, 60)), Text(row.metric), *_numbers(row))
    return table


def _numbers(row: Row) -> list[str]:
    allowed = "–" if row.tolerance is None else _percent(row.tolerance)
    return [f"{row.measured:.4g}", f"{row.predicted:.4g}", _percent(row.error, sign=True), allowed]


def unpredicted_table(validation: Validation, most: int = 20) -> Table:
    """The rows without a prediction, with the reason."""
    rows = [row for row in validation.cases if row.predicted is None]
    title = f"Without a prediction: {len(rows)}" + (f", the first {most}" if len(rows) > most else "")
    table = plain_table(title, first="case")
    table.add_column("metric")
    table.add_column("reason", overflow="fold")
    for row in rows[:most]:
        table.add_row(Text(shorten(row.id, 60)), Text(row.metric), Text(shorten(row.reason, 300)))
    return table


def tables(validation: Validation) -> list[Table]:
    """Everything worth seeing: by kind, GPU, model and library, the worst cases, and those without an answer."""
    named = {"kind": validation.by_kind, "GPU": validation.by_gpu, "model": validation.by_model}
    found = [error_table(f"Errors by {name}", groups) for name, groups in named.items() if groups]
    if validation.by_library:
        found.append(error_table("Errors by library or stack", validation.by_library))
    if any(row.error is not None for row in validation.cases):
        found.append(worst_table(validation))
    if any(row.predicted is None for row in validation.cases):
        found.append(unpredicted_table(validation))
    return found
