"""A result as text tables for the terminal, and the rows that every table of a summary shares."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.columns import SUMMARY, Column
from moesim.errors import shorten
from moesim.provenance import Quantity
from moesim.results.result import Result
from moesim.results.views import sorted_parts
from moesim.units import show

GROUPS: dict[str, tuple[str, ...]] = {
    "time": (
        "step_time",
        "attention_time",
        "expert_compute_time",
        "dense_time",
        "router_time",
        "optimizer_time",
        "pipeline_bubble_time",
        "skew_time",
        "skew_fraction",
        "bubble_amplification",
    ),
    "throughput": (
        "tokens_per_second",
        "tokens_per_second_per_gpu",
        "model_flops_per_second_per_gpu",
        "model_flops_utilization",
    ),
    "communication": (
        "communication_time",
        "exposed_communication_time",
        "communication_fraction",
        "dispatch_time",
        "combine_time",
        "data_parallel_time",
        "tensor_parallel_time",
        "bytes_scale_up_per_gpu",
        "bytes_scale_out_per_gpu",
    ),
    "routing": (
        "dropped_token_fraction",
        "padded_token_fraction",
        "expert_load_max_over_mean",
        "expert_load_static_max_over_mean",
        "rank_load_max_over_mean",
        "idle_expert_fraction",
        "balancedness",
        "expert_cache_hit_fraction",
        "expert_fetch_time_per_token",
    ),
    "memory": ("memory_per_gpu", "fits_in_memory"),
    "model": ("total_parameters", "active_parameters", "flops_per_token"),
    "reliability": (
        "goodput_fraction",
        "time_between_failures",
        "failures",
        "checkpoint_interval",
        "useful_time",
        "checkpoint_time",
        "lost_time",
        "restart_time",
        "spare_wait_time",
    ),
    "money": ("training_time", "gpu_hours", "cost", "energy"),
}
OTHER = "other"


@dataclass(frozen=True)
class Row:
    """One metric ready for reading: its group, label, value, range ("" where exact), basis, note and meaning."""

    group: str
    name: str
    label: str
    value: str
    range: str
    basis: str
    note: str
    meaning: str


def metric_label(name: str) -> str:
    """A metric's name in words: `tokens_per_second_per_gpu` is "tokens per second per GPU"."""
    words = {"gpu": "GPU", "gpus": "GPUs", "flops": "FLOPs"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def shown(value: float, unit: str) -> str:
    """`value` (SI) for reading; ratios carry no unit."""
    return f"{value:.3g}" if unit == "ratio" and abs(value) < 1000 else show(value, "" if unit == "ratio" else unit)


def shown_range(quantity: Quantity) -> str:
    """The range: "1.69–1.97" where value and both ends have one unit, else "955 ms – 1.02 s"; empty where exact."""
    if quantity.low == quantity.high:
        return ""
    texts = [shown(end, quantity.unit) for end in (quantity.low, quantity.high)]
    numbers, symbols = zip(*(text.partition(" ")[::2] for text in texts), strict=True)
    alike = {*symbols, shown(quantity.value, quantity.unit).partition(" ")[2]}
    return "–".join(numbers) if len(alike) == 1 else " – ".join(texts)


def grouped(names: list[str], of: dict[str, tuple[str, ...]] | None = None) -> list[tuple[str, list[str]]]:
    """The names in reading order, by group (of a training step unless said); names of no group come last under
    `OTHER`."""
    groups = [(group, [name for name in members if name in names]) for group, members in (of or GROUPS).items()]
    placed = {name for _, members in groups for name in members}
    rest = [name for name in names if name not in placed]
    return [(group, members) for group, members in [*groups, (OTHER, rest)] if members]


def summary_rows(result: Result) -> list[Row]:
    """Every metric that the result has, in reading order."""
    return metric_rows(result.summary, GROUPS, SUMMARY)


def metric_rows(
    summary: dict[str, Quantity], groups: dict[str, tuple[str, ...]], columns: dict[str, Column]
) -> list[Row]:
    """Every metric in reading order by `groups`, with its meaning from `columns`."""
    ordered = grouped(list(summary), groups)
    return [_row(group, name, summary[name], columns) for group, names in ordered for name in names]


def _row(group: str, name: str, quantity: Quantity, columns: dict[str, Column]) -> Row:
    meaning = columns[name].meaning if name in columns else ""
    value, spread = shown(quantity.value, quantity.unit), shown_range(quantity)
    return Row(group, name, metric_label(name), value, spread, quantity.basis, quantity.note, meaning)


def summary_table(result: Result) -> Table:
    """The summary by group; the metrics' notes stand below under their numbers. Reads well from 80 columns on."""
    return rows_table(f"{shorten(result.name)} ({result.road}d)", summary_rows(result))


def rows_table(title: str, rows: list[Row]) -> Table:
    """The rows by group, their notes below."""
    table = plain_table(title)
    for heading in ("value", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True, min_width=len("datasheet"))
    table.add_column("note", justify="right", no_wrap=True)
    notes: list[str] = []
    group = ""
    for row in rows:
        if row.group != group:
            table.add_section()
            table.add_row(Text(row.group, style="bold"))
            group = row.group
        if row.note and row.note not in notes:
            notes.append(row.note)
        number = str(notes.index(row.note) + 1) if row.note else ""
        label = Padding(Text(row.label), (0, 0, 0, 2))
        table.add_row(label, *map(Text, (row.value, row.range, row.basis, number)))
    lines = [f"{number:>2} {shorten(note, 400)}" for number, note in enumerate(notes, 1)]
    table.caption = Text("\n".join(lines)) if lines else None
    return table


def breakdown_table(result: Result) -> Table:
    """Where the step goes: parts, the largest first, with their sum."""
    return parts_table("Where the step goes (mean over GPUs)", result.parts("step_time"), "time")


def memory_table(result: Result) -> Table:
    """Memory of the fullest GPU by part, the largest first, with their sum."""
    return parts_table("Memory of the fullest GPU", result.parts("memory_per_gpu"), "bytes")


def parts_table(title: str, parts: dict[str, Quantity], heading: str) -> Table:
    """Parts, the largest first, with their sum."""
    table = plain_table(title, first="part")
    for column in (heading, "range", "share", "basis"):
        table.add_column(column, justify="left" if column == "basis" else "right", no_wrap=True)
    for row in part_rows(parts):
        table.add_row(Text(shorten(row[0])), *row[1:])
    table.add_section()
    total, unit = sum(part.value for part in parts.values()), next((part.unit for part in parts.values()), "")
    table.add_row("sum", show(total, unit), "", "", "")
    return table


def part_rows(parts: dict[str, Quantity]) -> list[tuple[str, str, str, str, str]]:
    """Name, value, range, share and basis of each part, the largest first."""
    return [
        (name, shown(value, parts[name].unit), shown_range(parts[name]), show(share, "fraction"), parts[name].basis)
        for name, value, share in sorted_parts({name: part.value for name, part in parts.items()})
    ]


def plain_table(title: str, first: str = "metric") -> Table:
    """An empty table in the common style; it reads the same without colour."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column(first, overflow="fold", min_width=len("communication"))
    return table
