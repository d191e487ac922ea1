"""The critical path of a pipeline schedule from scalar slot times.

The schedule is compiled once into a list in which every slot stands behind what it waits for; a walk over that list
then takes a microsecond a slot, whatever the prices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from moesim.closed_form.slots import SlotTime
from moesim.errors import InternalError
from moesim.step.schedules import Key, Order, Slot, inputs, order

_MOST_WORKS = 200_000
"""Beyond so many (chunk, microbatch) works the path of two shorter schedules is extended in a straight line."""


class Step(NamedTuple):
    """One slot: its pipeline rank, its kind, the numbers of the outputs it waits for and of those it makes (-1: none)."""

    stage: int
    kind: int
    needs: tuple[int, ...]
    forward: int
    backward: int


@dataclass(frozen=True)
class Plan:
    """A compiled schedule. `kinds`: (pipeline rank, an example slot) of every kind of slot, used `uses` times."""

    stages: int
    steps: tuple[Step, ...]
    kinds: tuple[tuple[int, Slot], ...]
    uses: tuple[float, ...]
    outputs: int


class Schedule(NamedTuple):
    """What a schedule is called: kind, P pipeline ranks, V chunks a rank, M microbatches, paired slots."""

    kind: str
    stages: int
    chunks: int
    microbatches: int
    paired: bool


@dataclass(frozen=True)
class Path:
    """When each pipeline rank has worked through its slots, and how often each kind of slot occurs."""

    ends: tuple[float, ...]
    uses: tuple[float, ...]


def shortened(schedule: Schedule) -> tuple[Schedule, ...]:
    """The schedule itself, or, where it is very long, two shorter ones of the same make."""
    works = schedule.stages * schedule.chunks * schedule.microbatches
    if works <= _MOST_WORKS or schedule.microbatches <= 8 * schedule.stages:
        return (schedule,)
    return tuple(schedule._replace(microbatches=times * schedule.stages) for times in (4, 8))


def critical_path(schedule: Schedule, spent: list[SlotTime], hop: float) -> Path:
    """The path of a schedule whose kinds of slots take `spent`; messages between pipeline ranks take `hop` seconds."""
    paths = [Path(_walk(plan(short), spent, hop), plan(short).uses) for short in shortened(schedule)]
    if len(paths) == 1:
        return paths[0]
    near, far = (short.microbatches for short in shortened(schedule))
    beyond = (schedule.microbatches - far) / (far - near)

    def extend(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(late + beyond * (late - early) for early, late in zip(first, second, strict=True))

    return Path(extend(paths[0].ends, paths[1].ends), extend(paths[0].uses, paths[1].uses))


def kinds(schedule: Schedule) -> tuple[tuple[int, Slot], ...]:
    """(pipeline rank, example slot) of every kind of slot, in the order that `critical_path` wants their times."""
    return plan(shortened(schedule)[-1]).kinds


@lru_cache(maxsize=64)
def plan(schedule: Schedule) -> Plan:
    """The compiled schedule."""
    return compile_order(order(*schedule), schedule.stages * schedule.chunks - 1)


def compile_order(slots: Order, last_chunk: int) -> Plan:
    """Puts the slots of all pipeline ranks into one order in which nothing waits for what comes later."""
    stages = len(slots)
    position = [0] * stages
    number: dict[Key, int] = {}
    kind_of: dict[tuple[int, ...], int] = {}
    examples: list[tuple[int, Slot]] = []
    steps: list[Step] = []
    waiting: dict[Key, int] = {}
    queue = list(range(stages))
    while queue:
        stage = queue.pop()
        while position[stage] < len(slots[stage]):
            slot = slots[stage][position[stage]]
            needs = inputs(slot, last_chunk)
            missing = next((key for key in needs if key not in number), None)
            if missing is not None:
                waiting[missing] = stage
                break
            name = (stage, *(work[0] if work is not None else -1 for work in slot))
            kind = kind_of.setdefault(name, len(kind_of))
            if kind == len(examples):
                examples.append((stage, slot))
            made = [-1, -1]
            for side, work in enumerate((slot.forward, slot.backward)):
                if work is not None:
                    key = (("forward", "backward")[side], work[0], work[1])
                    made[side] = number[key] = len(number)
                    if key in waiting:
                        queue.append(waiting.pop(key))
            steps.append(Step(stage, kind, tuple(number[key] for key in needs), *made))
            position[stage] += 1
    if any(done < len(row) for done, row in zip(position, slots, strict=True)):
        raise InternalError("the pipeline schedule waits for itself")
    uses = Counter(step.kind for step in steps)
    return Plan(stages, tuple(steps), tuple(examples), tuple(float(uses[k]) for k in range(len(examples))), len(number))


def _walk(compiled: Plan, spent: list[SlotTime], hop: float) -> tuple[float, ...]:
    """A slot begins when its rank is free and its inputs have come, `hop` seconds after they were ready."""
    clock, ready = [0.0] * compiled.stages, [0.0] * compiled.outputs
    times = [(slot.seconds, slot.ready.get("forward", 0.0), slot.ready.get("backward", 0.0)) for slot in spent]
    for stage, kind, needs, ahead, back in compiled.steps:
        begin = clock[stage]
        for need in needs:
            arrives = ready[need] + hop
            if arrives > begin:
                begin = arrives
        seconds, forward, backward = times[kind]
        clock[stage] = begin + seconds
        if ahead >= 0:
            ready[ahead] = begin + forward
        if back >= 0:
            ready[back] = begin + backward
    return tuple(clock)
