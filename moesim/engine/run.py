"""The simulated road from scenario to result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moesim.engine.conservation import check_routing
from moesim.engine.simulation import Columns, SimulatedStep, simulate_step
from moesim.randomness import Streams
from moesim.results.assemble import assemble, require_memory
from moesim.results.result import Result
from moesim.results.summary import Observed
from moesim.scenario.scenario import Scenario
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork, even_work, price_layers, routing_sampler

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class _Silent:
    def __call__(self, what: str, share: float) -> None:
        """Says nothing."""


def simulate(scenario: Scenario, progress: Progress | None = None, *, even_if_infeasible: bool = False) -> Result:
    """Simulates `scenario`; `progress` hears what is being done and which share of it is over.

    Raises `InfeasibleError` where the model does not fit in memory, unless `even_if_infeasible`.
    """
    tell = progress or _Silent()
    model = StepModel(scenario)
    if not even_if_infeasible:
        require_memory(scenario, memory_parts(model, 1.0))
    streams = Streams(scenario.simulation.seed)
    with ThreadPoolExecutor(max_workers=1) as beside:
        # The balanced twin is simulated while compiled kernels draw tokens.
        twin = beside.submit(_even_seconds, model, streams)
        routed = draw_routing(model, tell)
        even_seconds = twin.result()
    steps: list[SimulatedStep] = []
    for step in range(scenario.simulation.steps):
        done, count = step, scenario.simulation.steps

        def report(share: float, done: int = done, count: int = count) -> None:
            tell("simulating", (done + share) / count)

        steps.append(simulate_step(model, routed, step, streams, report))
    tell("simulating", 1.0)
    return assemble(model, routed, observe(model, steps, even_seconds), "simulate", _join(steps))


def _even_seconds(model: StepModel, streams: Streams) -> float | None:
    """Length of the same step, jitter and stragglers included, at perfectly balanced routing."""
    even = even_work(model)
    return None if even is None else simulate_step(model, even, 0, streams).seconds


def draw_routing(model: StepModel, tell: Progress) -> RoutedWork | None:
    """Token-level routing samples of every MoE layer, priced; None for a dense model."""
    scenario = model.scenario
    if not scenario.model.is_moe:
        return None
    sampler = routing_sampler(model)
    layers = len(model.moe_index)
    work = price_layers(
        model,
        sampler.sample,
        scenario.simulation.microbatch_samples,
        lambda done: tell("routing tokens", done / layers),
    )
    check_routing(model, work)
    return work


def observe(model: StepModel, steps: list[SimulatedStep], even_seconds: float | None = None) -> Observed:
    """Means over steps and pipeline ranks."""
    waited: defaultdict[str, float] = defaultdict(float)
    busy: defaultdict[str, float] = defaultdict(float)
    ranks = model.scenario.parallelism.pipeline
    for step in steps:
        for reason, seconds in step.waited.items():
            waited[reason] += seconds / len(steps)
        kinds, inverse = np.unique(step.columns["kind"], return_inverse=True)
        sums = np.bincount(inverse, weights=step.columns["busy_mean"]) / ranks / len(steps)
        for kind, seconds in zip(kinds.tolist(), sums.tolist(), strict=True):
            busy[kind] += seconds
    return Observed(tuple(step.seconds for step in steps), busy, waited, even_seconds)


def _join(steps: list[SimulatedStep]) -> Columns:
    """All steps' operations on one time axis."""
    offset, parts = 0.0, []
    for step in steps:
        times = {name: step.columns[name] + offset for name in ("begin", "end", "begin_mean", "end_mean")}
        parts.append({**step.columns, **times})
        offset += step.seconds
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
