"""Scalar evaluation of a slot: its two streams walked with every operation's busiest-rank seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moesim.step.operations import Operation


class Leg(NamedTuple):
    """Seconds of one operation: its busiest rank's, and the mean rank's."""

    busiest: float
    mean: float


@dataclass(frozen=True)
class SlotTime:
    """A slot: seconds from begin to end, seconds until each side's output is ready, and the compute stream's account.

    `busy` and `waited`: seconds by kind of operation that the compute stream works, or waits for an exchange.
    """

    seconds: float
    ready: Mapping[str, float]
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
    ready: dict[str, float] = {}
    for operation, leg in zip(operations, legs, strict=True):
        begin = free[operation.stream]
        for before in operation.after:
            begin = max(begin, ends[before])
        if operation.stream == "compute":
            gap = begin - free["compute"]
            if gap > 0 and operation.after:
                waited[operations[operation.after[0]].kind] += gap
            busy[operation.kind] += leg.mean
            waited["combine"] += leg.busiest - leg.mean
        ends.append(begin + leg.busiest)
        free[operation.stream] = ends[-1]
        if operation.exit:
            ready[operation.side] = ends[-1]
    end = max(free.values())
    if end > free["compute"]:
        last = max(range(len(ends)), key=lambda position: (ends[position], position))
        waited[operations[last].kind] += end - free["compute"]
    return SlotTime(end, ready, dict(busy), dict(waited))
