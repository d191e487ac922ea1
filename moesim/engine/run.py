"""The simulated road from a step's model to its result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moesim.engine.conservation import check_routing
from moesim.engine.reliability import simulate_runs
from moesim.engine.simulation import Columns, SimulatedStep, simulate_step
from moesim.errors import Problem, ScenarioError
from moesim.randomness import Streams
from moesim.results.assemble import assemble
from moesim.results.observed import EvenStep, Observed
from moesim.results.reliability import run_plan
from moesim.results.result import Result
from moesim.step.model import StepModel
from moesim.step.offload import held_in_turn
from moesim.step.placed import routing_sampler
from moesim.step.routed import RoutedWork, even_work, price_layers

Progress = Callable[[str, float], None]
MOST_OPERATIONS, MOST_KEPT = 1_500_000, 10_000_000
"""Of one step, walked through in some 35 s and 1.9 GB; and of all steps: rows of a table that is still read."""


@dataclass(frozen=True)
class _Silent:
    def __call__(self, what: str, share: float) -> None:
        """Says nothing."""


def simulate_model(model: StepModel, progress: Progress | None = None, even: EvenStep | None = None) -> Result:
    """Simulates the steps of `model`; `progress` hears what is being done and which share of it is over.

    `even`: the step at perfectly balanced routing where it is known; else it is simulated too.
    """
    scenario, tell = model.scenario, progress or _Silent()
    _check_size(model)
    streams = Streams(scenario.simulation.seed)
    if even is None:
        even = _even_step(model, streams)
    routed = draw_routing(model, tell)
    steps: list[SimulatedStep] = []
    for step in range(scenario.simulation.steps):
        done, count = step, scenario.simulation.steps

        def report(share: float, done: int = done, count: int = count) -> None:
            tell("simulating", (done + share) / count)

        steps.append(simulate_step(model, routed, step, streams, report))
    tell("simulating", 1.0)
    observed = observe(model, steps, even)
    plan = run_plan(scenario, float(np.mean(observed.seconds)))
    if plan is not None:
        run = simulate_runs(plan, np.asarray(observed.seconds), streams, lambda done: tell("training run", done))
        observed = replace(observed, run=run)
    return assemble(model, routed, observed, "simulate", _join(steps))


def _check_size(model: StepModel) -> None:
    """Raises `ScenarioError` for a step, or steps, of more operations than can be walked through and kept."""
    scenario = model.scenario
    count, steps = sum(len(model.work(slot)[0]) for slots in model.order for slot in slots), scenario.simulation.steps
    told = f"{count:,} operations a step ({scenario.microbatches:,} microbatches)"
    if count > MOST_OPERATIONS:
        what = f"{told} are too many to simulate; allowed: at most {MOST_OPERATIONS:,}: use a larger micro_batch, fewer"
        raise ScenarioError([Problem("workload.global_batch", f"{what} sequences, or estimate")], scenario.name)
    if count * steps > MOST_KEPT:
        what = f"{steps:,} are too many with {told}; allowed: at most {MOST_KEPT // count:,}"
        raise ScenarioError([Problem("simulation.steps", what)], scenario.name)


def _even_step(model: StepModel, streams: Streams) -> EvenStep | None:
    """The first step once more with the same disturbances at perfectly balanced routing; None for a dense model."""
    work = even_work(model)
    if work is None:
        return None
    step = simulate_step(model, work, 0, streams)
    return EvenStep(step.seconds, step.waited["bubble"])


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
    return replace(work, held=held_in_turn(model, lambda layer: sampler.choices(layer, 0, 0)))


def observe(model: StepModel, steps: list[SimulatedStep], even: EvenStep | None = None) -> Observed:
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
    return Observed(tuple(step.seconds for step in steps), busy, waited, even, drawn=True)


def _join(steps: list[SimulatedStep]) -> Columns:
    """All steps' operations on one time axis."""
    offset, parts = 0.0, []
    for step in steps:
        times = {name: step.columns[name] + offset for name in ("begin", "end", "begin_mean", "end_mean")}
        parts.append({**step.columns, **times})
        offset += step.seconds
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
