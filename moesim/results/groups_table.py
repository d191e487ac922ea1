"""The groups of ranks that a layout makes, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from moesim.results.table import plain_table
from moesim.step.groups import GroupKind


def groups_table(kinds: Sequence[GroupKind], title: str = "groups of ranks") -> Table:
    """One row a kind of group of several ranks; the caption names the kinds of one rank.

    Who sums gradients has a row where it is not the data group alone.
    """
    table = plain_table(title, "group")
    table.columns[0].min_width = 0
    for heading in ("groups", "ranks", "stride", "domains"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("GPUs of the first", overflow="fold")
    table.add_column("its domains", overflow="fold")
    for kind in _told(kinds):
        stride = "uneven" if kind.stride is None else f"{kind.stride:,}"
        counts = (f"{kind.groups:,}", f"{kind.size:,}", stride, domains(kind))
        table.add_row(kind.name, *counts, kind.example, kind.example_domains)
    alone = [kind.name for kind in kinds if kind.size == 1]
    table.caption = Text(f"of one rank: {', '.join(alone)}") if alone else None
    return table


def meanings(kinds: Sequence[GroupKind]) -> list[str]:
    """What the ranks of each group do together, a line each."""
    return [f"{kind.name}: they {kind.meaning}" for kind in _told(kinds)]


def _told(kinds: Sequence[GroupKind]) -> list[GroupKind]:
    """Those of several ranks; who sums gradients only where it is not the data group alone."""
    data = {kind.example for kind in kinds if kind.name != "data-context"}
    return [kind for kind in kinds if kind.size > 1 and (kind.name != "data-context" or kind.example not in data)]


def domains(kind: GroupKind) -> str:
    """How many scale-up domains a group of this kind spans."""
    least, most = kind.domains
    if kind.inside:
        return "inside one"
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"
