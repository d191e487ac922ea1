"""A training scenario's loads made to drift, and the study of how often to place its experts anew.

N steps, M samples of a step, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from moesim.errors import UserError
from moesim.placement import BLIND
from moesim.placement.drift import domain_walk, domains_of, load_of, popularity_walk
from moesim.placement.rebalancing import Memory
from moesim.placement.strategies import WITH_PAIRS, Target
from moesim.randomness import Streams
from moesim.rebalancing.loads import Batch, Drift, History, Settings, Wandering, drawn, warm_steps
from moesim.rebalancing.outcome import Rebalancing
from moesim.rebalancing.price import link_share, step_seconds
from moesim.rebalancing.study import Overlap, Progress, Question, study
from moesim.scenario.scenario import Scenario
from moesim.step.draws import load_moments, shares, trace
from moesim.step.migration import carrier
from moesim.step.model import StepModel

INTERVALS = (1, 2, 5, 10, 20, 50, 100)
MOST_LAYERS = 12
MOST_LOADS = 60_000_000
"""Loads of an expert in a layer, sample and step that a study holds: half a gigabyte."""


def rebalance(
    scenario: Scenario,
    intervals: Iterable[int] | None = None,
    *,
    drift: Drift | None = None,
    memory: Memory | None = None,
    strategy: str = "greedy",
    tolerance: float | None = 0.02,
    overlap: bool = False,
    overhead: float = 0.0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Rebalancing:
    """How often a training scenario's experts should be placed anew while its loads drift.

    `memory`: what placements are made from; `tolerance`: of load above a fresh plan that is kept for fewer moves (None:
    fresh plans as they are); `overlap`: changes hide behind the step instead of stopping it; `overhead`: seconds that
    each takes before anything moves; `progress` hears what is done and the share of it that is over.
    Raises `UserError` where there is nothing to place.
    """
    drift, memory, settings = drift or Drift(), memory or Memory(), settings or Settings()
    _check(scenario, strategy)
    model = StepModel(scenario)
    _check_size(model, settings, memory)
    steps = settings.steps
    wanted = tuple(intervals) if intervals is not None else tuple(n for n in INTERVALS if n <= steps // 2)
    carries = carrier(model)
    domain = model.mover.network.ranks_per_domain
    question = Question(
        strategy=strategy,
        target=Target(scenario.parallelism.expert, domain, 0, _groups(scenario, strategy)),
        seconds=step_seconds(model),
        move=carries.cost,
        tolerance=tolerance,
        overlap=Overlap(link_share(model)) if overlap else None,
        overhead=overhead,
    )
    histories = [history(model, drift, memory, settings, seed) for seed in range(settings.seeds)]
    found = study(question, histories, wanted, progress)
    return replace(found, name=scenario.name, story=_story(question, drift, memory), notes=_notes(model, drift, memory))


def history(model: StepModel, drift: Drift, memory: Memory, settings: Settings, seed: int) -> History:
    """The loads of one seed: the whole batch of each step is counted, its microbatches' ranks wait for each other."""
    scenario, layout, shared = model.scenario, model.scenario.parallelism, shares(model)
    streams = Streams(Streams(scenario.routing.seed).integer(f"rebalancing/seed{seed}"))
    load = wandering(model, drift, warm_steps(memory) + settings.steps, streams)
    whole = Batch(scenario.tokens_per_step, scenario.workload.global_batch)
    tokens = scenario.tokens_per_rank * layout.expert_tensor * layout.expert
    part = Batch(tokens, shared.replicas * shared.sequences)
    return drawn(load, whole, part, memory, settings.samples, streams)


def wandering(model: StepModel, drift: Drift, steps: int, streams: Streams) -> Wandering:
    """The scenario's own load at evenly spaced layers, made to drift; raises `UserError` where it has no domains."""
    layers, generator = len(model.moe_index), streams.generator("rebalancing/walk")
    some = np.unique(np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int))
    if drift.kind == "popularity":
        moments = load_moments(model)
        load = load_of(moments.chance[some], moments.between[some])
        return Wandering(popularity_walk(load.chance, steps, drift.correlation, generator), load.concentration)
    named = model.scenario.routing.load
    if named.trace is None:
        raise UserError("loads drift by domains where routing.load is a trace with several: {trace: NAME}")
    found = domains_of(trace(named.trace), layers, named.moment, dict(named.mix))
    found = found._replace(chance=found.chance[:, some], concentration=found.concentration[some])
    return Wandering(domain_walk(found, steps, drift.correlation, drift.spread, generator), found.concentration)


def _check(scenario: Scenario, strategy: str) -> None:
    if not scenario.exchanges_tokens:
        raise UserError("nothing to rebalance: one expert-parallel rank, or a model without experts")
    if scenario.model.n_experts == scenario.parallelism.expert:
        raise UserError(
            "nothing to rebalance: a rank holds one expert, and ranks are as uneven as experts wherever it is"
        )
    if scenario.router.evened or scenario.router.slotted:
        raise UserError(f"nothing to rebalance: the router {scenario.model.router.rule} gives every expert as much")
    if strategy in BLIND or strategy in WITH_PAIRS:
        raise UserError(f"strategy {strategy} cannot follow loads; greedy, groups, global and hierarchical can")
    if scenario.placement.offload is not None:
        raise UserError("placement.offload keeps experts in host memory: their moves between GPUs are not modelled")


def _check_size(model: StepModel, settings: Settings, memory: Memory) -> None:
    """Raises `UserError` for a study whose loads are more numbers than are held."""
    each = settings.samples * min(len(model.moe_index), MOST_LAYERS) * model.scenario.model.n_experts
    warm = warm_steps(memory)
    if (settings.steps + warm) * settings.seeds * each > MOST_LOADS:
        asked = f"{settings.steps:,} steps of {settings.seeds:,} seeds and {settings.samples:,} samples"
        filled = f"{warm:,} steps to fill the memory (window, half_life)"
        raise UserError(f"{asked}, with {filled}, are too many: at most {MOST_LOADS:,} loads are studied")


def _groups(scenario: Scenario, strategy: str) -> int:
    return scenario.model.router.groups if strategy in ("groups", "hierarchical") else 1


def _story(question: Question, drift: Drift, memory: Memory) -> dict[str, object]:
    overlap = question.overlap
    return {
        "strategy": question.strategy,
        "tolerance": question.tolerance,
        "drift": {"kind": drift.kind, "correlation_steps": drift.correlation, "basis": "assumed"},
        "memory": memory.words,
        "overhead": question.overhead,
        "overlap": None if overlap is None else {"link_share_taken": overlap.busy, "steps": overlap.steps},
    }


def _notes(model: StepModel, drift: Drift, memory: Memory) -> tuple[str, ...]:
    layers = len(model.moe_index)
    told = [
        f"a correlation time of {drift.correlation:g} steps is assumed: nobody has published how fast loads drift",
        f"placements are made from {memory.words}, of all tokens of a step",
        "an expert's optimizer states move with its weights, layer by layer, as NCCL point-to-point",
    ]
    if model.capacity_rule is not None:
        told.append("a capacity bounds what imbalance costs; that better balance drops fewer copies is not counted")
    if drift.kind == "domains":
        told.append(f"the log of a domain's share wanders by {drift.spread:g} (assumed)")
    if layers > MOST_LAYERS:
        told.append(f"{MOST_LAYERS} evenly spaced layers stand for {layers}")
    return tuple(told)
