"""Terminal tables: complete, readable at 80 and 100 columns, and safe with any name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_fixture import Shape, simulated
from rich.console import Console
from rich.table import Table

from moesim.columns import SUMMARY
from moesim.provenance import Quantity
from moesim.results.table import (
    GROUPS,
    OTHER,
    breakdown_table,
    grouped,
    memory_table,
    metric_label,
    shown,
    shown_range,
    summary_rows,
    summary_table,
)


def text(table: Table, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_every_summary_metric_has_one_place() -> None:
    placed = [name for members in GROUPS.values() for name in members]
    assert len(placed) == len(set(placed))
    assert set(SUMMARY) <= set(placed)


@pytest.mark.parametrize("width", [80, 100])
def test_the_summary_shows_every_metric_within_the_width(width: int) -> None:
    result = simulated()
    printed = text(summary_table(result), width)
    words = " ".join(printed.split())
    assert all(len(line) <= width for line in printed.splitlines())
    assert "…" not in printed
    assert all(shown(q.value, q.unit) in words for q in result.summary.values())
    assert all(q.note in words for q in result.summary.values())
    assert all(name in words for name in metric_label("exposed_communication_time").split())
    assert [row.name for row in summary_rows(result)] == [
        n for _, names in grouped(list(result.summary)) for n in names
    ]


def test_an_unknown_metric_is_shown_under_other() -> None:
    result = simulated()
    quantity = Quantity.exact(0.2, "s")
    rows = summary_rows(replace(result, summary={**result.summary, "time_to_first_token": quantity}))
    assert (rows[-1].group, rows[-1].label, rows[-1].value) == (OTHER, "time to first token", "200 ms")
    assert len(rows) == len(result.summary) + 1


def test_a_name_is_never_read_as_markup() -> None:
    result = simulated(name="[bold red]x[/]\x1b[2J")
    printed = text(summary_table(replace(result, breakdown={"[blink]part": 1.0})), 100)
    assert "[bold red]x[/]" in printed
    assert "\x1b" not in printed
    assert "[blink]part" in text(breakdown_table(replace(result, breakdown={"[blink]part": 1.0})), 100)


def test_ranges_name_their_unit_where_the_ends_differ() -> None:
    assert shown_range(Quantity(1.83, "s", 1.69, 1.97, "fitted")) == "1.69–1.97"
    assert shown_range(Quantity(1.01, "s", 0.955, 1.06, "fitted")) == "955 ms – 1.06 s"
    assert shown_range(Quantity(0.31, "fraction", 0.29, 0.33, "fitted")) == "29–33"
    assert shown_range(Quantity.exact(3.0, "s")) == ""
    assert shown(0.876543, "ratio") == "0.877"
    assert shown(1500.0, "ratio") == "1,500"


def test_parts_are_sorted_and_add_up() -> None:
    result = simulated(Shape(slow_network=5.0))
    lines = text(breakdown_table(result), 80).splitlines()
    first = next(line for line in lines if "%" in line)
    assert "exposed combine" in first
    assert shown(sum(result.breakdown.values()), "s") in lines[-2] + lines[-1]
    assert shown(sum(result.memory.values()), "B") in text(memory_table(result), 80)
