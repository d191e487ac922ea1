"""A comparison as text tables for the terminal; each reads well from 80 columns on."""

from __future__ import annotations

import re

from rich.bar import Bar as BlockBar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.provenance import worst
from moesim.results.compare import Comparison, Explanation, Metric
from moesim.results.compare_inputs import value_texts
from moesim.results.compare_waterfall import Bar, axis_begin, bar_texts, begin_text, middle_cut
from moesim.results.table import metric_label, plain_table, shown
from moesim.units import show

MOST_DIFFERENCES = 12
MOST_OPERATIONS = 12
_BLOCKS = 20
_NAME = 24
_LEAST_PATH = 16
_LEAST_VALUE = 9
_COLOURS = {"whole": "default", "longer": "yellow", "shorter": "blue"}
_LITTLE = 1e-3
"""Operations that change by less than so much of all changes are not worth a line."""


def differences_table(comparison: Comparison, width: int = 80) -> Table | None:
    """The inputs that differ, the first ones, `width` columns wide; the others are counted. None where all scenarios
    are alike."""
    found = comparison.differences
    if not found:
        return None
    listed, count = found[:MOST_DIFFERENCES], len(comparison.names)
    most = max(_LEAST_PATH, (width - 4) // 2 - 8 * (count - 2))
    first = min(most, max(len(one.path) for one in listed))
    each = max(_LEAST_VALUE, (width - 4 - first) // count - 3)
    table = plain_table("Inputs that differ", first="input")
    for name in comparison.names:
        table.add_column(Text(middle_cut(name, each)), overflow="fold", max_width=each)
    for one in listed:
        table.add_row(Text(_broken(one.path, first)), *(Text(shorten(text, 60)) for text in value_texts(one)))
    rest = found[MOST_DIFFERENCES:]
    entries = ", ".join(dict.fromkeys(one.path.split(".")[0] for one in rest))
    table.caption = Text(f"and {len(rest)} more, in {entries}; --json tells all") if rest else None
    return table


def _broken(path: str, width: int) -> str:
    """The path in lines of at most `width` characters where its dots allow that."""
    lines = [""]
    for word in re.findall(r"[^.]*\.|[^.]+", path):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def comparison_table(comparison: Comparison, width: int = 80) -> Table:
    """One column a result, each after the first with its ratio to the first where `width` columns have room for that;
    least trusted basis of a row last."""
    table, count = plain_table("Comparison"), len(comparison.names)
    ratios = count == 2 or width >= 40 + 24 * count
    each = _NAME if ratios else max(_LEAST_VALUE, (width - 28) // count - 3)
    for place, name in enumerate(comparison.names):
        table.add_column(Text(middle_cut(name, each)), justify="right", overflow="fold")
        if place and ratios:
            table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True, min_width=len("datasheet"))
    first = sum(metric.name in comparison.kind.first for metric in comparison.metrics)
    for place, metric in enumerate(comparison.metrics, 1):
        table.add_row(*map(Text, metric_texts(metric, ratios)), end_section=place == first)
    return table


def metric_texts(metric: Metric, with_ratios: bool = True) -> list[str]:
    """A metric's label, its value in every result, the ratio to the first after each but that, and its basis."""
    values = [shown(value.value, metric.unit) if value else "–" for value in metric.values]
    ratios = ["–" if ratio is None else shown(ratio, "ratio") for ratio in metric.ratios]
    after = zip(values[1:], ratios[1:], strict=True) if with_ratios else ((value,) for value in values[1:])
    basis = worst(value.basis for value in metric.values if value)
    return [metric_label(metric.name), values[0], *(text for texts in after for text in texts), basis]


def waterfall_table(why: Explanation) -> Table:
    """From the first step (or iteration) to the other, a row a part that changes, with a bar of block characters."""
    begin, end = axis_begin(why.bars), max(bar.end for bar in why.bars)
    table = plain_table(f"From {why.whole.name} to {why.whole.name}, {why.whole.over}", first="part")
    for heading in ("time", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(Text(f"begins at {begin_text(why.bars)}" if begin else ""), no_wrap=True, width=_BLOCKS)
    for bar, texts in zip(why.bars, bar_texts(why.bars), strict=True):
        table.add_row(Text(bar.name), *map(Text, texts), _blocks(bar, begin, end))
        if bar is why.bars[0] or bar is why.bars[-2]:
            table.add_section()
    return table


def _blocks(bar: Bar, begin: float, end: float) -> BlockBar:
    """A bar on the axis; even the shortest shows an eighth of a character."""
    span = max(end - begin, 1e-30)
    least = span / (8 * _BLOCKS)
    low = min(max(0.0, min(bar.begin, bar.end) - begin), span - least)
    high = max(low + least, max(bar.begin, bar.end) - begin)
    kind = bar.kind if bar.kind == "whole" else "longer" if bar.change > 0 else "shorter"
    return BlockBar(span, low, high, width=_BLOCKS, color=_COLOURS[kind])


def operations_table(comparison: Comparison, which: int) -> Table | None:
    """The operations that changed most, under their parts, in the two results of the `which`-th explanation; the others
    are counted. None without operations, or where none changed."""
    why = comparison.explanations[which - 1]
    changed = [row for row in why.operations if row.change]
    if not changed:
        return None
    least = _LITTLE * sum(abs(row.change) for row in changed)
    largest = sorted(changed, key=lambda row: -abs(row.change))[:MOST_OPERATIONS]
    chosen = [row for row in largest if abs(row.change) > least]
    table = plain_table(f"By operation, {why.whole.over}", first="operation")
    for name in (comparison.names[0], comparison.names[why.which], "change"):
        table.add_column(Text(middle_cut(name, 16)), justify="right", no_wrap=True)
    here, there = why.breakdowns
    for part in dict.fromkeys(row.part for row in changed if row in chosen):
        table.add_section()
        whole = change_texts(here.get(part, 0.0), there.get(part, 0.0))
        table.add_row(*(Text(text, style="bold") for text in (part, *whole)))
        inside = [row for row in chosen if row.part == part != row.operation]
        for row in inside:
            table.add_row(Text(f"  {row.operation}"), *map(Text, change_texts(row.base, row.other)))
    rest = sum(abs(row.change) for row in changed if row not in chosen)
    count = len(changed) - len(chosen)
    table.caption = Text(f"{count} more changed by {show(rest, 's')} altogether; --json tells all") if count else None
    return table


def change_texts(base: float, other: float) -> tuple[str, str, str]:
    """Both seconds and the signed change, for reading."""
    return signed(base, ""), signed(other, ""), signed(other - base)


def signed(seconds: float, plus: str = "+") -> str:
    """Seconds with their sign; `plus`: that of what is not negative."""
    return f"{'−' if seconds < 0 else plus}{show(abs(seconds), 's')}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Inputs, metrics, and every explanation: waterfall, operations and sentence."""
    tables = [differences_table(comparison, console.width), comparison_table(comparison, console.width)]
    for table in filter(None, tables):
        console.print(table)
    for which, why in enumerate(comparison.explanations, 1):
        console.print(waterfall_table(why))
        operations = operations_table(comparison, which)
        if operations is not None:
            console.print(operations)
        console.print(why.sentence)
