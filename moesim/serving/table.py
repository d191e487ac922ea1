"""A serving result as text tables for the terminal."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table

from moesim.columns import SERVING
from moesim.errors import shorten
from moesim.provenance import Basis, Quantity
from moesim.results.result import Result
from moesim.results.table import (
    Row,
    breakdown_table,
    memory_table,
    metric_rows,
    parts_table,
    rows_table,
    summary_table,
)
from moesim.serving.result import ServingResult

GROUPS: dict[str, tuple[str, ...]] = {
    "latency": (
        "time_to_first_token",
        "time_to_first_token_mean",
        "time_to_first_token_p99",
        "time_per_output_token",
        "time_per_output_token_mean",
        "time_per_output_token_p99",
        "request_latency",
        "request_latency_mean",
        "request_latency_p99",
    ),
    "throughput": (
        "output_tokens_per_second",
        "output_tokens_per_second_per_gpu",
        "input_tokens_per_second",
        "requests_per_second",
        "goodput_requests_per_second",
        "goodput_fraction",
    ),
    "engine": (
        "batch_requests",
        "kv_cache_use",
        "rank_load_max_over_mean",
        "expert_load_max_over_mean",
        "communication_fraction",
        "expert_cache_hit_fraction",
        "expert_fetch_fraction",
    ),
    "memory": ("memory_per_gpu", "fits_in_memory", "host_memory_per_gpu"),
    "money": ("gpu_hours_per_million_output_tokens", "cost_per_million_output_tokens"),
}


MEDIANS = ("time_to_first_token", "time_per_output_token", "request_latency")


def serving_rows(result: ServingResult) -> list[Row]:
    """Every metric that the result has, in reading order, the statistic in each latency's label; an estimate's means
    stand there once."""
    told = result.summary
    if result.road == "estimate":
        once = {name: one for name, one in told.items() if name not in MEDIANS or f"{name}_mean" not in told}
        return metric_rows(once, GROUPS, SERVING)
    rows = metric_rows(told, GROUPS, SERVING)
    return [replace(row, label=f"{row.label}, median") if row.name in MEDIANS else row for row in rows]


def result_tables(result: Result | ServingResult) -> list[Table]:
    """The tables of a result of either kind."""
    if isinstance(result, ServingResult):
        return serving_tables(result)
    return [summary_table(result), breakdown_table(result), memory_table(result)]


def serving_tables(result: ServingResult) -> list[Table]:
    """Summary, the mean iteration by part, and the fullest GPU's memory by part."""
    tables = [rows_table(f"{shorten(result.name)} ({result.road}d)", serving_rows(result))]
    for phase, parts in iterations_by_phase(result.breakdown).items():
        tables.append(parts_table(f"{phase}, mean", quantities(parts, "s"), "time"))
    if result.memory:
        tables.append(parts_table("Memory of the fullest GPU", quantities(result.memory, "B"), "bytes"))
    return tables


def iterations_by_phase(breakdown: dict[str, float]) -> dict[str, dict[str, float]]:
    """The parts of an iteration of each pool, "decode iteration" -> part -> seconds; one pool alone has no phase."""
    found: dict[str, dict[str, float]] = {}
    for name, value in breakdown.items():
        first, _, rest = name.partition(": ")
        phase, part = (f"{first} iteration", rest) if rest else ("iteration", name)
        found.setdefault(phase.capitalize(), {})[part] = value
    return found


def quantities(parts: dict[str, float], unit: str) -> dict[str, Quantity]:
    """Parts as quantities, for the tables."""
    basis: Basis = "fitted" if unit == "s" else "derived"
    return {name: Quantity.exact(value, unit, basis=basis) for name, value in parts.items()}
