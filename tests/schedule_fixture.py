"""Walks a pipeline schedule whose slots take stated times on every rank: what the schedules' tests share."""

from __future__ import annotations

from moesim.closed_form.pipeline import compile_order, walk
from moesim.closed_form.slots import Reach, SlotTime
from moesim.step.schedules import Order, Slot

EQUAL = (1.0, 1.0, 1.0)
Times = tuple[float, float, float]


def ends(schedule: Order, last_chunk: int, hop: float = 0.0, times: Times = EQUAL) -> tuple[float, ...]:
    """When each rank ends a schedule whose forward, input and weight gradients take `times` on every chunk."""

    def time(stage: int, slot: Slot) -> SlotTime:
        seconds = sum(share for share, work in zip(times, slot, strict=True) if work is not None)
        reach = Reach(seconds, seconds, seconds)
        return SlotTime(seconds, (reach, reach, reach), {}, {})

    plan = compile_order(schedule, last_chunk)
    return walk(plan, [time(*kind) for kind in plan.kinds], hop, [0.0] * plan.stages)


def length(schedule: Order, last_chunk: int, hop: float = 0.0, times: Times = EQUAL) -> float:
    """Time of a whole schedule."""
    return max(ends(schedule, last_chunk, hop, times))
