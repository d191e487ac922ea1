"""A training run under failures on simpy: training, restarts, spare hosts and their repairs, over months.

Steps are drawn from those that were simulated, never simulated again, and never stand on the clock one by one: between
two failures the checkpoints reached are looked up, so that events count failures, not steps.

G segments of the run, K simulated steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.costs.reliability import RunPlan
from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.results.reliability import RunTime, check_parts

Floats = NDArray[np.float64]
Process = Generator[Any, Any, None]

MOST_ATTEMPTS, ATTEMPTS_OF_ALL_RUNS = 200_000, 200_000
LEAST_RUNS, MOST_RUNS = 4, 200
"""Segments tried in one run, and in all; runs simulated. They bound the time, to some seconds."""


def simulate_runs(
    plan: RunPlan, step_seconds: Floats, streams: Streams, tell: Callable[[float], None] | None = None
) -> RunTime:
    """Simulates the run several times; parts are means over runs, the range holds 5 to 95 % of them.

    Raises `UserError` where the run has too many checkpoints or failures to simulate.
    """
    attempts = plan.segments / plan.chance
    if attempts > MOST_ATTEMPTS:
        raise UserError(
            f"simulation.failures: the run tries some {attempts:,.0f} segments between checkpoints, at most"
            f" {MOST_ATTEMPTS:,} are simulated; fewer workload.total_tokens, a longer checkpoint interval, or estimate"
        )
    count = int(np.clip(ATTEMPTS_OF_ALL_RUNS / attempts, LEAST_RUNS, MOST_RUNS))
    runs = []
    for number in range(count):
        runs.append(simulate_run(plan, step_seconds, streams, number))
        if tell is not None:
            tell((number + 1) / count)
    seconds = np.array([run.seconds for run in runs])
    parts = {
        name: float(np.mean([getattr(run, name) for run in runs]))
        for name in ("useful", "checkpoint", "lost", "restart", "waiting", "failures")
    }
    low, high = np.quantile(seconds, [0.05, 0.95]).tolist()
    mean = float(seconds.mean())  # of a few runs with rare failures the mean may lie outside
    return RunTime(plan, **parts, low=min(low, mean), high=max(high, mean), runs=count)


def simulate_run(plan: RunPlan, step_seconds: Floats, streams: Streams, number: int) -> RunTime:
    """Simulates one run; `number` names its streams of randomness."""
    env = simpy.Environment()
    training = _Training(env, plan, _segment_seconds(plan, step_seconds, streams, number), streams, number)
    env.run(env.process(training.train()))
    spent = training.spent
    checkpoint = plan.segments * plan.write
    useful = float(training.ends[-1]) - checkpoint
    run = RunTime(
        plan, useful, checkpoint, spent.lost, spent.restart, spent.waiting, spent.failures, env.now, env.now, 1
    )
    check_parts(env.now, run)
    return run


def _segment_seconds(plan: RunPlan, step_seconds: Floats, streams: Streams, number: int) -> Floats:
    """Seconds [G] of each segment's steps, drawn with replacement from the simulated steps [K], and its checkpoint."""
    draw = streams.generator(f"failures/run{number}/steps")
    chances = np.full(len(step_seconds), 1 / len(step_seconds))
    counts = np.full(plan.segments, plan.segment_steps)
    counts[-1] = plan.last_steps
    return np.asarray(draw.multinomial(counts, chances) @ step_seconds + plan.write, dtype=np.float64)


@dataclass
class _Spent:
    """Seconds by what they went to, and failures so far."""

    lost: float = 0.0
    restart: float = 0.0
    waiting: float = 0.0
    failures: int = 0


class _Training:
    """One run on the clock; a segment keeps its seconds when it is done again, for it is the same batches."""

    def __init__(self, env: simpy.Environment, plan: RunPlan, segments: Floats, streams: Streams, number: int) -> None:
        self.env, self.plan, self.spent = env, plan, _Spent()
        self.ends = np.concatenate(([0.0], np.cumsum(segments)))
        self.chance = streams.generator(f"failures/run{number}/times")
        self.repairs = streams.generator(f"failures/run{number}/repairs")
        self.spares = simpy.Container(env, init=plan.spares or 0)

    def train(self) -> Process:
        """From the first step to the last checkpoint; a failure leads back to the checkpoint before it."""
        reached, last = 0, len(self.ends) - 1
        while True:
            alive = self._time_to_failure()
            through = self.ends[reached] + alive
            if through >= self.ends[last]:
                yield self.env.timeout(float(self.ends[last] - self.ends[reached]))
                return
            yield self.env.timeout(alive)
            reached = int(np.searchsorted(self.ends, through, side="right")) - 1
            self.spent.lost += float(through - self.ends[reached])
            yield from self._recover()

    def _recover(self) -> Process:
        """A healthy host, a restart, the checkpoint read; again from the start where the reading fails."""
        read = False
        while not read:
            self.spent.failures += 1
            yield from self._replace_host()
            alive = self._time_to_failure()
            read = alive >= self.plan.load
            seconds = self.plan.restart + min(alive, self.plan.load)
            self.spent.restart += seconds
            yield self.env.timeout(seconds)

    def _replace_host(self) -> Process:
        """Sends the failed host to repair and takes one that stands by, waiting for it if need be."""
        if self.plan.spares is None:
            return
        self.env.process(self._repair())
        since = self.env.now
        yield self.spares.get(1)
        self.spent.waiting += self.env.now - since

    def _repair(self) -> Process:
        yield self.env.timeout(float(self.repairs.exponential(self.plan.repair)))
        yield self.spares.put(1)

    def _time_to_failure(self) -> float:
        """Seconds of work until the cluster's next failure; without memory, so it is drawn anew after each stop."""
        return float(self.chance.exponential(1 / self.plan.rate))
