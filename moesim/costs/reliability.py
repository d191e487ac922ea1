"""A training run under failures as plain numbers: checkpoint intervals (Young 1974, Daly 2006), and a run's plan.

Time constants of the field: M mean time between failures of the whole cluster, C seconds that training stands still to
write a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InfeasibleError
from moesim.specs.workload import FailuresSpec
from moesim.units import show

Floats = NDArray[np.float64]

LEAST_CHANCE = 0.01
"""Chance of reaching the next checkpoint below which a run is refused: it would try a hundred times."""


def young_interval(write: ArrayLike, between_failures: ArrayLike) -> Floats:
    """First-order optimum sqrt(2 C M) of the training time between checkpoints (Young 1974, CACM 17(9))."""
    return np.sqrt(2.0 * np.asarray(write, dtype=np.float64) * np.asarray(between_failures, dtype=np.float64))


def daly_interval(write: ArrayLike, between_failures: ArrayLike) -> Floats:
    """Higher-order optimum of the training time between checkpoints (Daly 2006, FGCS 22(3), equation 37)."""
    cost, mean = np.asarray(write, dtype=np.float64), np.asarray(between_failures, dtype=np.float64)
    part = cost / (2.0 * mean)
    perturbed = young_interval(cost, mean) * (1.0 + np.sqrt(part) / 3.0 + part / 9.0) - cost
    return np.where(part < 1.0, perturbed, mean)


@dataclass(frozen=True)
class RunPlan:
    """A run cut into segments of `segment_steps` steps and a checkpoint each, the last with what steps remain.

    `rate`: failures a second of the whole cluster, while it works. `restart`: seconds of each failure in which nothing
    works and nothing fails; `load`: seconds of reading the checkpoint, in which it may fail again. `spares`: hosts
    standing by, each failed one coming back after `repair` seconds on average; None where there is always one.
    """

    steps: int
    step_seconds: float
    segment_steps: int
    rate: float
    write: float
    restart: float
    load: float
    spares: int | None = None
    repair: float = 0.0

    @property
    def segments(self) -> int:
        """Segments of the run, the last one included."""
        return ceil(self.steps / self.segment_steps)

    @property
    def last_steps(self) -> int:
        """Steps of the last segment."""
        return self.steps - (self.segments - 1) * self.segment_steps

    @property
    def interval(self) -> float:
        """Seconds of training between two checkpoints."""
        return self.segment_steps * self.step_seconds

    @property
    def useful(self) -> float:
        """Seconds of the steps that count, each once."""
        return self.steps * self.step_seconds

    @property
    def chance(self) -> float:
        """Chance to read a checkpoint, train a segment and write the next one without a failure."""
        return exp(-self.rate * (self.load + self.interval + self.write))


def plan_run(failures: FailuresSpec, gpus: int, steps: int, step_seconds: float) -> RunPlan:
    """The plan of `steps` steps on `gpus` GPUs.

    Raises `InfeasibleError` where a segment would hardly ever end before a failure.
    """
    rate = gpus / failures.mean_time_between_failures
    saving, spares = failures.checkpoint, failures.spares
    interval = float(daly_interval(saving.write, 1 / rate)) if saving.interval == "auto" else saving.interval
    plan = RunPlan(
        steps=steps,
        step_seconds=step_seconds,
        segment_steps=min(steps, max(1, round(interval / step_seconds))),
        rate=rate,
        write=saving.write,
        restart=failures.restart,
        load=saving.load,
        spares=None if spares is None else spares.hosts,
        repair=0.0 if spares is None else spares.repair,
    )
    if plan.chance < LEAST_CHANCE:
        raise InfeasibleError(
            f"training hardly progresses: {gpus:,} GPUs fail every {show(1 / rate, 's')}, but a checkpoint is"
            f" {show(plan.load, 's')} to load, {show(plan.interval, 's')} of steps ({show(step_seconds, 's')} each)"
            f" and {show(plan.write, 's')} to write apart; a longer mean_time_between_failures, fewer GPUs, or a"
            " shorter checkpoint interval, write or load would relax it"
        )
    return plan
