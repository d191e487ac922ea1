"""Small pieces of a plan's sentences: limits, amounts, what two layouts differ in."""

from __future__ import annotations

from math import ceil, floor, isfinite, log10

from moesim.planner.defaults import DAY
from moesim.planner.figures import Limit
from moesim.planner.plan import Row
from moesim.planner.reading import Question
from moesim.units import show

_NAMES = {
    "cluster.gpu": "GPU",
    "cluster.gpus": "GPUs",
    "cluster.fabric": "fabric",
    "parallelism.tensor": "tensor",
    "parallelism.pipeline": "pipeline",
    "parallelism.virtual_pipeline": "chunks a pipeline rank",
    "parallelism.expert": "expert",
    "parallelism.expert_tensor": "expert_tensor",
    "parallelism.context": "context",
    "workload.micro_batch": "micro_batch",
    "recompute": "recompute",
    "schedule.kind": "schedule",
    "routing.capacity": "capacity",
    "dispatcher.kind": "dispatcher",
    "overlap.expert_communication": "hidden exchanges",
}


def cost_words(question: Question, value: float) -> str:
    """A cost as the plan tells it."""
    return show(value, "$" if question.priced else "GPU-h")


def relaxed_words(limit: Limit, ratio: float) -> str:
    """A weaker limit, never told weaker than it has to be by its digits: "days 34.3 instead of 30"."""
    needed, allowed = ratio * limit.allowed, limit.allowed
    if limit.key == "memory_headroom" and needed > 1.0:
        return f"{_above(needed):.3g} x a GPU's memory"
    if limit.key == "memory_headroom":
        return f"memory_headroom {show(-_above(needed - 1), 'fraction')} instead of {show(1 - allowed, 'fraction')}"
    if limit.key == "days":
        return f"days {_above(needed / DAY):,.10g} instead of {allowed / DAY:,.10g}"
    if limit.key == "gpus":
        return f"gpus {round(needed):,} instead of {round(allowed):,} (of the sizes tried)"
    return f"{limit.key} {show(_above(needed), limit.unit)} instead of {show(allowed, limit.unit)}"


def beyond(ratio: float) -> str:
    """How far beyond a limit: "6.48 % more than allowed", "10.2 x what is allowed"."""
    if ratio < 1.5:
        return f"{show(ratio - 1, 'fraction')} more than allowed"
    return f"{ratio:.3g} x what is allowed" if isfinite(ratio) else "where none is allowed"


def _above(value: float) -> float:
    """The value in three digits, not below it."""
    if value == 0.0 or not isfinite(value):
        return value
    size = 10.0 ** (floor(log10(abs(value))) - 2)
    return ceil(value / size - 1e-9) * size


def band(low: float, high: float) -> str:
    """How far a range goes down and up, as shares of the value: "−17 % to +45 %", or "±20 %" where that is alike."""
    down, up = show(low, "fraction"), show(high, "fraction")
    return f"±{up}" if down == up else f"−{down} to +{up}"


def amount(seconds: float, plain: bool) -> str:
    """Seconds, or GPU-seconds."""
    if plain:
        return show(seconds, "s")
    return f"{seconds:,.3g} GPU-s" if seconds < 1000 else f"{seconds:,.0f} GPU-s"


def differences(winner: Row, other: Row) -> str:
    """The fields of the layout in which they differ, the winner's value first."""
    one, two = winner.layout, other.layout
    names = [name for name in _NAMES if one[name] != two[name]]
    return ", ".join(f"{_NAMES[name]} {_said(one[name])} against {_said(two[name])}" for name in names)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " + ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
