"""A study of rebalancing as text tables that read well at 80 columns."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.rebalancing.outcome import Rebalancing, Row
from moesim.results.table import plain_table
from moesim.units import show

_BALANCE = {
    "mean_over_max": "SGLang",
    "ratio_of_sums": "vLLM",
    "excess": "TRT-LLM",
    "max_over_mean": "max/mean",
}


def tables(found: Rebalancing) -> tuple[Table, Table]:
    """A row a way to place: what a step saves and waits for; then its balance by every definition, and one change."""
    title = f"Rebalancing {shorten(found.name, 40)}, {show(found.even, 's')} at even load"
    gains = plain_table(title, "new placement")
    for head in ("step", "saved", "waited", "net gain", "over seeds"):
        gains.add_column(head, justify="right")
    gains.caption = Text("saved, waited, net gain: percent of a step with experts in order")
    changes = plain_table("Balance, and one change", "new placement")
    for head in (*_BALANCE.values(), "moved", "takes"):
        changes.add_column(head, justify="right")
    changes.caption = Text(
        "SGLang, vLLM: balancedness, mean over busiest rank, 1 is even;\n"
        "TRT-LLM: (busiest - mean) / mean, 0 is even; max/mean: busiest over mean;\n"
        "moved: experts a layer; takes: seconds on the links"
    )
    for row in found.rows:
        name = row.name + (" *" if found.best is not None and row.interval == found.best.interval else "")
        gains.add_row(Text(name), *map(Text, _gains(row, found.rows[0].step.value)))
        changes.add_row(Text(name), *map(Text, _changes(row)))
    return gains, changes


def _gains(row: Row, base: float) -> tuple[str, ...]:
    saved, waited, gain, low, high = (
        f"{100.0 * value / base:.2f}"
        for value in (row.saved.value, row.waited.value, row.gain.value, row.gain.low, row.gain.high)
    )
    return show(row.step.value, "s"), saved, waited, gain, f"{low} to {high}"


def _changes(row: Row) -> tuple[str, ...]:
    moved = (f"{row.moved:.1f}", show(row.migration, "s")) if row.interval is not None else ("", "")
    return (*(f"{row.balance[key].value:.3f}" for key in _BALANCE), *moved)
