"""A sweep for the terminal and as JSON: the first rows, what became of all of them, and why some have no answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.results.table import metric_label, shown
from moesim.sweeps.fields import value_shown
from moesim.sweeps.nouns import HEADLINES, UNITS_OF
from moesim.sweeps.result import Sweep
from moesim.sweeps.table import STATES

MOST_ROWS = 40
MOST_REASONS = 4
MOST_LETTERS = 24
MOST_METRICS = 5


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """Plain data for JSON: every row with what it sets and the values of its metrics; ranges stand in the table."""
    names = [*sweep.fields, *STATES, *sweep.metrics]
    return {
        "question": sweep.question,
        "road": sweep.header["road"],
        "points": sweep.arrow.num_rows,
        **{f"points_{status}": count for status, count in sweep.counts.items()},
        "computed": sweep.computed,
        "reused": sweep.reused,
        "notes": list(sweep.notes),
        "rows": sweep.arrow.select(names).to_pylist(),
    }


def table(sweep: Sweep) -> Table:
    """The first rows: what each sets, and the headline metrics that any of them has."""
    head = sweep.arrow.slice(0, MOST_ROWS).to_pylist()
    several = len({row["seed"] for row in head}) > 1
    settings = [*sweep.fields, *(["seed"] if several or not sweep.fields else [])]
    chosen = [name for name in HEADLINES[sweep.noun] if name in sweep.metrics] or list(sweep.metrics[:MOST_METRICS])
    metrics = [name for name in chosen if any(row[name] is not None for row in head)]
    total = sweep.arrow.num_rows
    title = f"{total:,} points" if total <= MOST_ROWS else f"The first {MOST_ROWS} of {total:,} points"
    found = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for label in _labels(settings):
        found.add_column(Text(label), justify="right", no_wrap=True)
    for name in metrics:
        found.add_column(Text(metric_label(name)), justify="right")
    found.add_column("status", no_wrap=True)
    for row in head:
        told = [_setting(name, row[name]) for name in settings]
        told += ["" if row[name] is None else shown(row[name], UNITS_OF[name]) for name in metrics]
        found.add_row(*map(Text, told), Text(row["status"]))
    return found


def _setting(name: str, value: Any) -> str:
    return "" if value is None else shorten(value_shown(name, value), MOST_LETTERS)


def _labels(fields: list[str]) -> list[str]:
    """The last word of each field, or all of it where that is not clear."""
    last = Counter(field.rpartition(".")[2] for field in fields)
    return [field if last[word] > 1 else word for field in fields for word in [field.rpartition(".")[2]]]


def reasons(sweep: Sweep) -> list[str]:
    """What became of the points, a line each; the commonest reasons of those that have no answer."""
    counts = ", ".join(f"{count:,} {status}" for status, count in sweep.counts.items())
    pairs = zip(*(sweep.arrow.column(name).to_pylist() for name in ("status", "reason")), strict=True)
    why = Counter((status, reason) for status, reason in pairs if status != "done")
    lines = [f"{count:,} {status}: {shorten(reason, 300)}" for (status, reason), count in why.most_common(MOST_REASONS)]
    more = len(why) - MOST_REASONS
    return [counts, *lines, *([f"and {more:,} other reasons: column `reason` of the table"] if more > 0 else [])]
