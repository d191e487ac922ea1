"""What limits and objectives read of candidates, the limits themselves, and which of them binds.

C candidates, L limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import coefficients
from moesim.costs.money import draw
from moesim.planner.defaults import DAY
from moesim.planner.reading import Question
from moesim.results.reliability import whole_steps
from moesim.specs.plan import Objective

Floats = NDArray[np.float64]
HOUR = 3600.0
LEVEL = 1e-6
"""Relative difference that is none."""
FAR = 1e9
"""Counts as infinitely far over a limit, as any drop is where none is allowed."""


@dataclass(frozen=True)
class Figures:
    """Numbers of candidates [C]: seconds of a step and of the run, its cost in dollars (GPU-hours where there are no
    prices), bytes of the fullest GPU over its memory, share of copies dropped, GPUs and their watts."""

    step_seconds: Floats
    run_seconds: Floats
    cost: Floats
    memory_share: Floats
    dropped: Floats
    gpus: Floats
    watts: Floats

    def __len__(self) -> int:
        return len(self.gpus)

    def rows(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> Figures:
        """Some of the candidates."""
        return Figures(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def screened_figures(
    question: Question, cluster: NDArray[np.integer], steps: Floats, memory: Floats, dropped: Floats
) -> Figures:
    """Figures of screened candidates; failures are not in them."""
    clusters = question.choices.clusters
    gpus = np.array([float(spec.gpus) for spec in clusters])[cluster]
    watts = np.array([spec.gpus * (spec.gpu.power or 0.0) for spec in clusters])[cluster]
    run = steps * whole_steps(question.tokens / question.base.tokens_per_step)
    rent = np.array([1.0 if price is None else price for price in question.gpu_hour])[cluster]
    cost = gpus * run / HOUR * rent
    electricity = question.base.prices.electricity
    if electricity is not None and question.priced:
        prices = question.base.prices
        drawn = [spec.gpus * draw(spec.gpu.power or 0.0, prices, stands_still=False).running for spec in clusters]
        cost = cost + np.array(drawn)[cluster] * run / (1000.0 * HOUR) * electricity
    share = memory / np.array([spec.gpu.memory for spec in clusters])[cluster]
    return Figures(steps, run, cost, share, dropped, gpus, watts)


@dataclass(frozen=True)
class Limit:
    """One limit: its key in a plan, what is allowed, the figure that has to stay below, its unit and how it is said."""

    key: str
    allowed: float
    figure: str
    unit: str
    scale: float = 1.0

    def excess(self, figures: Figures) -> Floats:
        """The figure over what is allowed [C]; above 1 the limit is broken."""
        values = np.asarray(getattr(figures, self.figure), dtype=np.float64)
        if self.allowed > 0:
            return values / self.allowed
        return np.where(values > 0, np.inf, 0.0)


def limits_of(question: Question) -> tuple[Limit, ...]:
    """The limits in force; memory is always one."""
    said = question.limits
    headroom = 1.0 - float(coefficients()["fits"]) if said.memory_headroom is None else said.memory_headroom
    found = [Limit("memory_headroom", 1.0 - headroom, "memory_share", "fraction")]
    if said.days is not None:
        found.append(Limit("days", said.days * DAY, "run_seconds", "s", DAY))
    if said.dollars is not None:
        found.append(Limit("dollars", said.dollars, "cost", "$"))
    if said.dropped_fraction is not None:
        found.append(Limit("dropped_fraction", said.dropped_fraction, "dropped", "fraction"))
    if said.power is not None:
        found.append(Limit("power", said.power, "watts", "W"))
    if said.gpus is not None:
        found.append(Limit("gpus", float(said.gpus), "gpus", ""))
    return tuple(found)


def excesses(limits: tuple[Limit, ...], figures: Figures) -> Floats:
    """Figure over allowed [C, L]."""
    return np.stack([limit.excess(figures) for limit in limits], axis=1)


def binding(excess: Floats) -> NDArray[np.int8]:
    """-1 where every limit is kept, else the place of the limit that is broken most [C]."""
    worst = excess.argmax(axis=1).astype(np.int8)
    return np.where(excess.max(axis=1) > 1.0, worst, np.int8(-1))


def distance(excess: Floats) -> Floats:
    """How far candidates are from keeping all limits [C]: 0 where they do, else the logarithm of how many times over
    what is allowed they are, over all broken limits together."""
    return np.asarray(np.log(np.clip(excess, 1.0, FAR)).sum(axis=1))


def objective_of(objective: Objective) -> str:
    """The figure that an objective wants small; tokens per dollar is cost upside down, for the tokens are the same."""
    return {"time": "run_seconds", "fewest-gpus": "gpus"}.get(objective, "cost")


def better(objective: Objective, figures: Figures, than: Figures) -> NDArray[np.bool_]:
    """Whether candidates are better than one candidate [C]; a difference in the last digits is none."""
    second = {"cost": "run_seconds", "tokens-per-dollar": "run_seconds"}.get(objective, "cost")
    (own, tied), (first, other) = (
        [np.asarray(getattr(one, name)) for name in (objective_of(objective), second)] for one in (figures, than)
    )
    level = np.abs(own - first) <= LEVEL * first
    return np.asarray(np.where(level, tied < other * (1.0 - LEVEL), own < first))


def best_first(objective: Objective, figures: Figures) -> NDArray[np.int64]:
    """Places of candidates in the order of the objective; equal ones in the order given."""
    keys = {
        "cost": (figures.run_seconds, figures.cost),
        "tokens-per-dollar": (figures.run_seconds, figures.cost),
        "time": (figures.cost, figures.run_seconds),
        "fewest-gpus": (figures.run_seconds, figures.cost, figures.gpus),
    }
    return np.lexsort(keys[objective])
