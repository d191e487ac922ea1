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
    """One slot: its pipeline rank, its kind, and the outputs that each of its sides needs and makes (-1: none)."""

    stage: int
    kind: int
    forward_needs: int
    backward_needs: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Plan:
    """A compiled schedule. `kinds`: (pipeline rank, an example slot) of every kind of slot, used `uses` times, whose
    forward's and backward's inputs come from the rank itself where `stays`."""

    stages: int
    steps: tuple[Step, ...]
    kinds: tuple[tuple[int, Slot], ...]
    uses: tuple[float, ...]
    stays: tuple[tuple[bool, bool], ...]
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


def critical_path(schedule: Schedule, spent: list[SlotTime], hop: float, starts: list[float]) -> Path:
    """The path of a schedule whose kinds of slots take `spent`; messages between pipeline ranks take `hop` seconds.

    `starts`: when each pipeline rank may begin.
    """
    paths = [Path(walk(plan(short), spent, hop, starts), plan(short).uses) for short in shortened(schedule)]
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
            came = {key[0]: number[key] for key in needs}
            steps.append(Step(stage, kind, came.get("forward", -1), came.get("backward", -1), *made))
            position[stage] += 1
    if any(done < len(row) for done, row in zip(position, slots, strict=True)):
        raise InternalError("the pipeline schedule waits for itself")
    uses = Counter(step.kind for step in steps)
    counts = tuple(float(uses[kind]) for kind in range(len(examples)))
    return Plan(stages, tuple(steps), tuple(examples), counts, _stays(steps, len(examples)), len(number))


def _stays(steps: list[Step], kinds: int) -> tuple[tuple[bool, bool], ...]:
    """Whether the inputs of each kind of slot, forward's and backward's, come from its own pipeline rank."""
    maker = {output: step.stage for step in steps for output in (step.forward, step.backward) if output >= 0}
    first = {step.kind: step for step in reversed(steps)}
    examples = [first[kind] for kind in range(kinds)]
    return tuple(
        (maker.get(step.forward_needs) == step.stage, maker.get(step.backward_needs) == step.stage) for step in examples
    )


def walk(compiled: Plan, spent: list[SlotTime], hop: float, starts: list[float]) -> tuple[float, ...]:
    """Every slot's moments from those before it; an input comes `hop` seconds after another rank had it ready."""
    clock, ready = list(starts), [0.0] * compiled.outputs
    hops = [(0.0 if ahead else hop, 0.0 if back else hop) for ahead, back in compiled.stays]
    maps = [(*slot.paths, *arrival) for slot, arrival in zip(spent, hops, strict=True)]
    for stage, kind, ahead_needs, back_needs, ahead, back in compiled.steps:
        free, forward, backward, ahead_hop, back_hop = maps[kind]
        begin = clock[stage]
        end, made, given = begin + free[0], begin + free[1], begin + free[2]
        # Comparisons, not max(), and no inner loop: this is where the road spends its time.
        if ahead_needs >= 0:
            begin = ready[ahead_needs] + ahead_hop
            end = begin + forward[0] if begin + forward[0] > end else end
            made = begin + forward[1] if begin + forward[1] > made else made
            given = begin + forward[2] if begin + forward[2] > given else given
        if back_needs >= 0:
            begin = ready[back_needs] + back_hop
            end = begin + backward[0] if begin + backward[0] > end else end
            made = begin + backward[1] if begin + backward[1] > made else made
            given = begin + backward[2] if begin + backward[2] > given else given
        clock[stage] = end
        if ahead >= 0:
            ready[ahead] = made
        if back >= 0:
            ready[back] = given
    return tuple(clock)
