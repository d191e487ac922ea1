"""Scalar evaluation of a slot: its two streams walked with every operation's busiest-rank seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from moesim.step.operations import Operation


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
    return SlotTime(end, paths(operations, legs), dict(busy), dict(waited))


def paths(operations: tuple[Operation, ...], legs: list[Leg]) -> tuple[Reach, Reach, Reach]:
    """Longest paths from the rank being free, from the forward's arrival, and from the backward's."""
    free = _reach(operations, legs, "free")
    sides = {operation.side for operation in operations}
    if len(sides) == 1:  # one chain: its input opens the slot as a free rank does
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
            out[operation.side] = end
    return Reach(max(compute, communication), out["forward"], out["backward"])
