"""Scalar evaluation of a slot: its two streams walked with every operation's busiest-rank seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from moesim.step.operations import Operation, one_chain


class Leg(NamedTuple):
    """Seconds of one operation: its busiest rank's, and the mean rank's."""

    busiest: float
    mean: float


class Reach(NamedTuple):
    """Longest path from one moment to a slot's end and each side's output, seconds; minus infinity where none."""

    end: float
    forward: float
    backward: float


@dataclass(frozen=True)
class SlotTime:
    """A slot as a map of moments: its end and outputs are the latest of (when its rank is free, when its forward's and
    its backward's input arrive) each plus the longest path from there.

    `busy` and `waited`: seconds by kind of operation that the compute stream works, or waits for an exchange.
    """

    seconds: float
    paths: tuple[Reach, Reach, Reach]
    busy: Mapping[str, float]
    waited: Mapping[str, float]


def evaluate(operations: tuple[Operation, ...], legs: list[Leg]) -> SlotTime:
    """Walks a slot in issue order; an operation begins when its stream is free and what it waits for has ended.

    The time by which the busiest rank's compute exceeds the mean rank's is waited for at the next exchange by all
    others, so it counts as waiting for that exchange.
    """
    free = {"compute": 0.0, "communication": 0.0}
    ends: list[float] = []
    busy: defaultdict[str, float] = defaultdict(float)
    waited: defaultdict[str, float] = defaultdict(float)
    for operation, leg in zip(operations, legs, strict=True):
        begin = free[operation.stream]
        if operation.after:
            begin = max(begin, ends[operation.after[0]])
        if operation.stream == "compute":
            gap = begin - free["compute"]
            if gap > 0 and operation.after:
                waited[operations[operation.after[0]].kind] += gap
            busy[operation.kind] += leg.mean
            waited["combine"] += leg.busiest - leg.mean
        ends.append(begin + leg.busiest)
        free[operation.stream] = ends[-1]
    end = max(free.values())
    if end > free["compute"]:
        last = max(range(len(ends)), key=lambda position: (ends[position], position))
        waited[operations[last].kind] += end - free["compute"]
    return SlotTime(end, paths(operations, legs, end), dict(busy), dict(waited))


def stretched(operations: tuple[Operation, ...], legs: list[Leg], slowed: list[float]) -> list[Leg]:
    """The legs of a slot with what exchanges take from compute that runs beside them.

    Exchanges are as long as they are, and none begins while an operation runs but after an earlier one or the slot's
    input: so all that can run beside an operation have their place once those before it have ended.
    """
    count = len(operations)
    ends: list[float | None] = [None] * count
    found, spans = list(legs), list[tuple[float, float]]()
    waiting = [place for place in range(count - 1, -1, -1) if operations[place].stream == "communication"]
    compute = communication = 0.0
    for place, operation in enumerate(operations):
        if operation.stream == "communication":
            continue
        while waiting:
            exchange = waiting[-1]
            after = operations[exchange].after
            input_at = ends[after[0]] if after else 0.0
            if input_at is None:
                break
            begin = input_at if input_at > communication else communication
            communication = ends[exchange] = begin + legs[exchange].busiest
            spans.append((begin, communication))
            waiting.pop()
        input_at = ends[operation.after[0]] if operation.after else 0.0
        begin = compute if input_at is None or compute > input_at else input_at
        leg, factor = legs[place], slowed[place]
        while spans and spans[0][1] <= begin:
            spans.pop(0)
        compute = ends[place] = _finished(begin, leg.busiest, factor, spans) if spans else begin + leg.busiest
        if leg.busiest:
            found[place] = Leg(compute - begin, leg.mean * (compute - begin) / leg.busiest)
    return found


def _finished(now: float, left: float, slowed: float, spans: list[tuple[float, float]]) -> float:
    """When work of `left` seconds is done that begins `now` and takes `slowed` times as long inside the spans."""
    for begin, end in spans:
        if begin > now:
            if left <= begin - now:
                break
            left, now = left - (begin - now), begin
        if left * slowed <= end - now:
            return now + left * slowed
        left, now = left - (end - now) / slowed, end
    return now + left


def paths(operations: tuple[Operation, ...], legs: list[Leg], end: float) -> tuple[Reach, Reach, Reach]:
    """Longest paths from the rank being free, from the forward's arrival, and from the backward's, of a slot that takes
    until `end` alone."""
    if one_chain(operations):
        side = operations[-1].side if operations else "weight"
        free = Reach(end, end if side == "forward" else -inf, end if side == "backward" else -inf)
        return (free, free, free)
    free = _reach(operations, legs, "free")
    if len({operation.side for operation in operations}) == 1:  # its input opens the slot as a free rank does
        return (free, free, free)
    return free, _reach(operations, legs, "forward"), _reach(operations, legs, "backward")


def _reach(operations: tuple[Operation, ...], legs: list[Leg], source: str) -> Reach:
    """Longest path from one source alone."""
    compute = communication = 0.0 if source == "free" else -inf
    ends: list[float] = []
    out = {"forward": -inf, "backward": -inf, "weight": -inf}
    for operation, leg in zip(operations, legs, strict=True):
        computes = operation.stream == "compute"
        begin = compute if computes else communication
        if operation.after:
            before = ends[operation.after[0]]
            begin = before if before > begin else begin
        elif operation.side == source and begin < 0.0:
            begin = 0.0
        end = begin + leg.busiest
        ends.append(end)
        if computes:
            compute = end
        else:
            communication = end
        if operation.exit:
            out[operation.side] = end if end > out[operation.side] else out[operation.side]
    return Reach(max(compute, communication), out["forward"], out["backward"])
