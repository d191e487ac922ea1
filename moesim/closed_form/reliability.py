"""Expected time of a training run under failures, in closed form.

Failures are exponential. A segment is `busy` seconds of steps and their checkpoint; a failure undoes what it has of
them, then comes a restart in which nothing fails, then the reading of the checkpoint, which may fail again. Its
expected time is exp(L R) (1/L + D) (exp(L (W + C)) - 1) with L failures a second, W + C `busy`, D `restart`, R `load`
(Bougeret, Casanova, Rabie, Robert, Vivien 2011, "Checkpointing strategies for parallel jobs", SC'11, proposition 1;
Daly 2006 where D is 0). Here stand its parts, and its variance by the moments of a truncated exponential and of a
geometric number of attempts.

It differs from the simulation where steps are of unequal length (less than 0.1 % unless a segment is a few steps), and
in the waiting for spare hosts, which is that of failures spread evenly (some 1 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.closed_form.spares import spare_waits
from moesim.costs.reliability import RunPlan
from moesim.results.reliability import RunTime

Floats = NDArray[np.float64]

NINE_IN_TEN = 1.645
"""Standard deviations of a normal distribution on either side of its mean that hold 90 % of it."""
RARE = 1e-4
"""Failures in a segment below which the exact moments cancel to less than the first terms of their series."""


@dataclass(frozen=True)
class Failures:
    """Failures a second; seconds of a restart, in which nothing fails; seconds of reading a checkpoint. Arrays or
    numbers that broadcast against each other."""

    rate: ArrayLike
    restart: ArrayLike
    load: ArrayLike


@dataclass(frozen=True)
class SegmentTime:
    """What failures add to a segment on average: their number, seconds undone, seconds of restarting and reading; the
    variance of its time; and that time itself."""

    failures: Floats
    lost: Floats
    restart: Floats
    variance: Floats
    seconds: Floats


def segment_time(busy: ArrayLike, failures: Failures) -> SegmentTime:
    """Expectations for segments of `busy` seconds."""
    busy = np.asarray(busy, dtype=np.float64)
    rate, restart = np.asarray(failures.rate, dtype=np.float64), np.asarray(failures.restart, dtype=np.float64)
    load = np.asarray(failures.load, dtype=np.float64)
    attempts, mean, variance = _cut_short(busy, rate)
    again, read_mean, read_variance = _cut_short(load, rate)
    recovery = restart + load + again * (read_mean + restart)
    recovery_variance = again * read_variance + again * (1 + again) * (read_mean + restart) ** 2
    lost, restarting = attempts * mean, attempts * recovery
    spread = attempts * (variance + recovery_variance) + attempts * (1 + attempts) * (mean + recovery) ** 2
    return SegmentTime(attempts * (1 + again), lost, restarting, spread, busy + lost + restarting)


def _cut_short(busy: Floats, rate: Floats) -> tuple[Floats, Floats, Floats]:
    """Failed attempts before one of `busy` seconds succeeds (geometric: its mean), and mean and variance of a failed
    attempt's seconds (exponential, cut at `busy`; nearly uniform where failures are rare)."""
    rare = rate * busy < RARE
    failed = np.expm1(rate * busy)
    some = np.where(rare, 1.0, failed)
    mean = np.where(rare, busy / 2 * (1 - rate * busy / 6), 1 / rate - busy / some)
    square = 2 / rate**2 - (busy**2 + 2 * busy / rate) / some
    return failed, mean, np.where(rare, busy**2 / 12, square - mean**2)


def expected_goodput(interval: ArrayLike, write: ArrayLike, failures: Failures) -> Floats:
    """Share of the time spent on steps that count, for checkpoints `interval` seconds of training apart."""
    interval = np.asarray(interval, dtype=np.float64)
    return interval / segment_time(interval + write, failures).seconds


def expected_run(plan: RunPlan) -> RunTime:
    """The run's expected time and its parts."""
    counts = np.array([plan.segments - 1, 1.0])
    busy = plan.step_seconds * np.array([plan.segment_steps, plan.last_steps]) + plan.write
    segment = segment_time(busy, Failures(plan.rate, plan.restart, plan.load))
    failures, seconds = float(counts @ segment.failures), float(counts @ segment.seconds)
    waiting, waiting_variance = 0.0, 0.0
    if plan.spares is not None:
        waiting, waiting_variance = spare_waits(plan.spares, failures / seconds, plan.repair, seconds)
    spread = NINE_IN_TEN * (float(counts @ segment.variance) + waiting_variance) ** 0.5
    checkpoint = plan.segments * plan.write
    return RunTime(
        plan=plan,
        useful=plan.useful,
        checkpoint=checkpoint,
        lost=float(counts @ segment.lost),
        restart=float(counts @ segment.restart),
        waiting=waiting,
        failures=failures,
        low=max(seconds + waiting - spread, plan.useful + checkpoint),
        high=seconds + waiting + spread,
    )
