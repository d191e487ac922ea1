"""Choices of dispatchers for serving as a text table; it reads well at 80 columns."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.provenance import Quantity
from moesim.results.table import metric_label, plain_table, shown
from moesim.serving.dispatchers import DispatchersCompared, ServingDispatchers

_HEADS = {
    "time_to_first_token": "first token",
    "time_per_output_token": "further",
    "output_tokens_per_second_per_gpu": "tokens/s/GPU",
    "input_tokens_per_second": "tokens/s",
    "communication_fraction": "exposed",
}
_MOST = 4


def dispatchers_table(found: DispatchersCompared) -> Table:
    """The choices that have an answer, the best first; `*` marks what `auto` takes."""
    table = plain_table(f"dispatchers by {metric_label(found.metric)} (what auto takes: *)", "prefill / decode")
    answered = [row for row in found.rows if row.result is not None]
    names = [name for name in _HEADS if any(name in row.result.summary for row in answered if row.result)]
    # Prompts a second say something where that is all that is done.
    names = [name for name in names if name != "input_tokens_per_second" or found.metric == name][:_MOST]
    for name in names:
        table.add_column(_HEADS[name], justify="right", no_wrap=True)
    for row in answered:
        table.add_row(Text(row.label + "*" * (row.names == found.chosen)), *map(Text, _cells(row, names)))
    return table


def _cells(row: ServingDispatchers, names: list[str]) -> list[str]:
    summary = row.result.summary if row.result is not None else {}
    return [_cell(summary[name]) if name in summary else "–" for name in names]


def _cell(value: Quantity) -> str:
    """Rates have their unit in the heading."""
    return shown(value.value, value.unit).removesuffix(" tokens/s")


def told(found: DispatchersCompared) -> list[str]:
    """What stands below: what auto takes, what is asked of kernels beyond their use, and why others have no answer."""
    beyond = dict.fromkeys(note for row in found.rows if row.result is not None for note in row.notes)
    lost = [f"{row.label}: {row.refusal}" for row in found.rows if row.result is None]
    return [f"auto: {found.reason}", *(f"beyond its use, {note}" for note in beyond), *lost]
