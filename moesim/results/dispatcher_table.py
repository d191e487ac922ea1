"""Every known dispatcher on one scenario, side by side: the fastest first, and why the others do not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from moesim.results.result import Result
from moesim.results.table import plain_table, shown

METRICS = (
    "step_time",
    "dispatch_time",
    "combine_time",
    "exposed_communication_time",
    "bytes_scale_up_per_gpu",
    "bytes_scale_out_per_gpu",
)
_IN_TABLE = tuple(name for name in METRICS if name != "exposed_communication_time")


@dataclass(frozen=True)
class DispatcherRow:
    """One dispatcher: the answer with it and the SMs it takes, or why there is none."""

    name: str
    multiprocessors: int
    result: Result | None
    refusal: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = self.result
        summary = {} if found is None else {name: found.summary[name].as_dict() for name in METRICS}
        return {
            "dispatcher": self.name,
            "multiprocessors": self.multiprocessors,
            "refusal": self.refusal,
            "notes": [] if found is None else [note for note in found.notes if "outside its fit" in note],
            "summary": summary,
        }


def ordered(rows: list[DispatcherRow]) -> list[DispatcherRow]:
    """The quickest step first, those that do not run last."""
    return sorted(rows, key=lambda row: row.result.summary["step_time"].value if row.result else float("inf"))


def dispatcher_table(rows: list[DispatcherRow], chosen: str) -> Table:
    """The rows as a table; `chosen` is what `auto` takes."""
    table = plain_table("dispatchers (what auto takes: *)", "dispatcher")
    table.columns[0].min_width = 0
    table.padding = (0, 0)
    for heading in ("step", "dispatch", "combine", "scale-up", "scale-out", "SMs", "basis"):
        table.add_column(heading, justify="left" if heading == "basis" else "right", no_wrap=True)
    for row in rows:
        mark = "*" if row.name == chosen else ""
        if row.result is None:
            continue
        values = [row.result.summary[name] for name in _IN_TABLE]
        cells = [Text(shown(value.value, value.unit)) for value in values]
        table.add_row(f"{row.name}{mark}", *cells, str(row.multiprocessors), values[1].basis)
    return table
