"""The time of a run in which rates are measured, and what its engines did in it.

Q requests, S stretches of iterations of one engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.serving.simulation import Run

Floats = NDArray[np.float64]
FEW = 3
"""Fewer times as long as a request is worked on make no steady rate."""
LEAST, LEAST_ENDED = 0.5, 5
"""Less than half of the median request's time, or fewer ends, are no time to measure in."""
LEAST_OF_A_THIRD = 20
"""So few requests tell no trend."""


@dataclass(frozen=True)
class Window:
    """The seconds from `begin` to `end`, `stays` times as long as the median request is worked on; `whole`: all of the
    run, filling and running dry included. `overloaded`: requests come faster than they are served. `change`: how many
    more requests are in the engines at its end than at its begin, where that is more than chance. `requests`: how many
    end in it."""

    begin: float
    end: float
    stays: float
    whole: bool
    overloaded: bool
    change: int
    requests: int

    @property
    def seconds(self) -> float:
        """Its length; never 0."""
        return max(self.end - self.begin, 1e-12)

    @property
    def steady(self) -> bool:
        """Whether rates are those of a deployment that could go on like this."""
        return not self.whole and not self.change and self.stays >= FEW

    @property
    def note(self) -> str:
        """What stands beside a rate."""
        if self.whole:
            return (
                "over the whole run, filling and running dry included, too short for a steady rate:"
                f" {self.requests:,} requests, {self.stays:.2g} times as long as the median one is worked on"
            )
        said = "of the time when the deployment neither fills nor runs dry"
        if self.overloaded:
            said = "sustained while the queue lasts: requests come faster than they are served"
        elif self.change:
            way = "more" if self.change > 0 else "fewer"
            said = f"not steady: {abs(self.change):,} {way} requests are in the engines at the end of the time measured"
        short = f"; only {self.stays:.2g} times as long as the median request is worked on" if self.stays < FEW else ""
        return said + short

    def share(self, begin: Floats, end: Floats) -> Floats:
        """Share of each stretch of time that lies within."""
        inside = np.minimum(end, self.end) - np.maximum(begin, self.begin)
        return np.asarray(np.clip(inside / np.maximum(end - begin, 1e-12), 0.0, 1.0))

    def holds(self, at: Floats) -> NDArray[np.bool_]:
        """Whether instants lie within."""
        return (at > self.begin) & (at <= self.end) | self.whole


def window(run: Run) -> Window:
    """From the tenth hundredth of the requests' ends to the ninetieth, and not beyond the last first token, up to which
    a queue lasts; of it the last whole number of times that the median request is worked on, for requests that begin
    together end together. The whole run where that is hardly anything.
    """
    times, count = run.times, run.requests.count
    stay = max(float(np.median(times.prefilled - times.begin + times.end - times.first)), 1e-12)
    begin, end = (float(value) for value in np.quantile(times.end, (0.1, 0.9)))
    end = min(end, float(times.first.max()))
    stays = (end - begin) / stay
    if stays >= 1:
        stays = float(np.floor(stays + 1e-9))
        begin = end - stays * stay * (1 - 1e-9)  # what ends at its very begin is of the time before
    ended = int(((times.end > begin) & (times.end <= end)).sum())
    if stays < LEAST or ended < LEAST_ENDED:
        begin, end = float(times.arrival.min()), float(times.end.max())
        return Window(begin, end, (end - begin) / stay, True, overloaded(run), 0, count)
    return Window(begin, end, stays, False, overloaded(run), _change(run, begin, end, ended), ended)


def _change(run: Run, begin: float, end: float, ended: int) -> int:
    """How many more requests are in the engines at the end than at the begin; 0 where a steady state could show it."""
    times = run.times
    before, after = (int(((times.begin <= at) & (times.end > at)).sum()) for at in (begin, end))
    chance = 3 * float(np.sqrt(before + after))
    return after - before if abs(after - before) > max(0.1 * ended, chance) else 0


def overloaded(run: Run) -> bool:
    """Whether the queue grows through an open run: first tokens come later and later after their requests."""
    wait = run.times.first - run.times.arrival
    third = len(wait) // 3
    if run.requests.concurrency is not None or third < LEAST_OF_A_THIRD:
        return False
    early, middle, late = (float(np.median(part)) for part in (wait[:third], wait[third:-third], wait[-third:]))
    return late > 1.5 * middle > 1.5 * 1.5 * early and late > 0.1 * float(run.times.end.max()) / 3


class Worked:
    """What engines did in the window: `columns` [S] of each, `shares` [S] of its stretches that lie within, and their
    `seconds` there."""

    def __init__(self, run: Run) -> None:
        self.window, self.logs = window(run), run.logs
        self.columns = [log.columns() for log in run.logs]
        self.shares = [self.window.share(each["begin"], each["end"]) for each in self.columns]
        self.seconds = [
            share * (each["end"] - each["begin"]) for share, each in zip(self.shares, self.columns, strict=True)
        ]

    def total(self, column: str) -> float:
        """The amount of a column within the window, over all engines."""
        return sum(float((each[column] * share).sum()) for each, share in zip(self.columns, self.shares, strict=True))

    def mean(self, column: str, weights: Sequence[float], *, per_room: bool = False) -> float:
        """Mean of a column over the time worked, each engine's time counted with its weight; `per_room`: as a share of
        the engine's KV cache."""
        total = time = 0.0
        for log, columns, seconds, weight in zip(self.logs, self.columns, self.seconds, weights, strict=True):
            room = float(log.kv_tokens) if per_room else 1.0
            total += weight * float((columns[column] * seconds).sum()) / room
            time += weight * float(seconds.sum())
        return total / time if time else 0.0

    def extent(self, column: str) -> tuple[float, float]:
        """5 and 95 % of a column over the time worked."""
        values = np.concatenate([each[column] for each in self.columns])
        seconds = np.concatenate(self.seconds)
        if not seconds.sum():
            return 1.0, 1.0
        order = np.argsort(values)
        upto = np.cumsum(seconds[order]) / seconds.sum()
        places = np.minimum(np.searchsorted(upto, (0.05, 0.95)), len(values) - 1)
        low, high = (float(value) for value in values[order][places])
        return low, high
