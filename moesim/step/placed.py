"""Where a scenario's experts are held, what that was planned from, and the sampler that counts where tokens then go.

L MoE layers, E experts, R expert-parallel ranks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement import expert_rank
from moesim.placement.coactivation import pair_counts
from moesim.placement.placed import BY_LOAD, Placed, placed, target_of
from moesim.placement.source import Observed, observe_named
from moesim.placement.strategies import WITH_PAIRS
from moesim.randomness import Streams
from moesim.routing.overflow import Gating
from moesim.routing.routers.base import Router
from moesim.routing.routers.top_k import SigmoidTopK, TopKRouter
from moesim.routing.sampler import RoutingSampler
from moesim.routing.sequences import depth
from moesim.routing.slots import Slots
from moesim.scenario.scenario import Scenario
from moesim.step.draws import drawn_tokens, draws, load_moments
from moesim.step.model import StepModel

Floats = NDArray[np.float64]

PLANNED_SAMPLE = 1 << 12
"""Samples from here on are those that a plan looks at; a simulation's own are below."""
PLANNED_TOKENS, PLANNED_SAMPLES = 16_384, 4
_DECIDES = ("model", "cluster", "parallelism", "workload", "routing", "placement", "simulation")


def routing_sampler(model: StepModel) -> RoutingSampler:
    """The token-level sampler of the scenario's router, load, capacity and placement."""
    scenario, layout, capacity = model.scenario, model.scenario.parallelism, model.scenario.routing.capacity
    held = placement(model)
    return RoutingSampler(
        draws(model),
        top_k=scenario.model.top_k,
        tokens_per_rank=drawn_tokens(model),
        ranks=layout.expert,
        ranks_per_domain=model.mover.network.ranks_per_domain,
        capacity=None if capacity == "dropless" else capacity,
        placement=expert_rank(scenario.model.n_experts, layout.expert) if held is None else slots(held),
        streams=Streams(scenario.routing.seed),
        gating=_gating(scenario.router),
    )


def _gating(rule: Router) -> Gating:
    """What a router's gates are, as the priority of capacity sees them."""
    if isinstance(rule, SigmoidTopK):
        return "sigmoid"
    renormalized = rule.renormalizes if isinstance(rule, TopKRouter) else rule.spec.renormalize
    return "renormalized" if renormalized else "softmax"


def slots(held: Placed) -> Slots:
    """The same for the sampler."""
    return Slots(held.placement.physical, held.shares, held.placement.experts, held.placement.ranks)


def placement(model: StepModel) -> Placed | None:
    """Where the experts of each MoE layer are; None where they stand in order, each once."""
    if model.scenario.placement.in_order or not model.scenario.model.is_moe:
        return None
    return _planned(_Question(model))


class _Question:
    """A step as far as it decides on the placement: steps that differ in nothing else share a plan."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.domain = model.mover.network.ranks_per_domain
        self.key = model.scenario.model_dump_json(include=set(_DECIDES))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and (self.key, self.domain) == (other.key, other.domain)


@lru_cache(maxsize=8)
def _planned(question: _Question) -> Placed:
    scenario, model = question.model.scenario, question.model
    spec, ranks = scenario.placement, scenario.parallelism.expert
    target = target_of(spec, ranks, question.domain, scenario.model.router.groups)
    known = _known(model)
    return placed(spec, target, known.loads, known.pairs, question.domain)


class _Known(NamedTuple):
    """Loads [L, E] of the model's MoE layers, and where a strategy asks for them what tokens choose together."""

    loads: Floats
    pairs: Floats | None


def _known(model: StepModel) -> _Known:
    """What the plan is made from: a recording, or what the scenario's own routing is expected to be."""
    spec, layers = model.scenario.placement, len(model.moe_index)
    wanted = spec.strategy in WITH_PAIRS
    if spec.planned_from is None:
        return _Known(load_moments(model).chance, _own_pairs(model) if wanted else None)
    found = recording(model.scenario)
    halves = [half for half in (found.fit, found.held_out) if half is not None]
    at = depth(layers, len(found.model_layers))
    loads: Floats = np.sum([half.loads for half in halves], axis=0, dtype=np.float64)
    pairs = [pair for half in halves if wanted and (pair := half.pairs) is not None]
    return _Known(loads[at], np.sum(pairs, axis=0)[at] if pairs else None)


def recording(scenario: Scenario) -> Observed:
    """What `placement.planned_from` says; raises `UserError` where it does not fit the model."""
    return _recording(str(scenario.placement.planned_from), scenario.placement.digest, _Model(scenario))


class _Model:
    """A scenario's model, the same for all scenarios of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.spec, self.key = scenario.model, scenario.model.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self.key == other.key


@lru_cache(maxsize=2)
def _recording(name: str, digest: str | None, model: _Model) -> Observed:
    return observe_named(name, model.spec, [f"top_k={model.spec.top_k}"])


def _own_pairs(model: StepModel) -> Floats:
    """Tokens of the scenario's own load that choose both experts of a pair [L, E, E]: samples that no road looks at."""
    own, ranks, tokens = draws(model), model.scenario.parallelism.expert, drawn_tokens(model)
    share = max(1, PLANNED_TOKENS // (tokens * PLANNED_SAMPLES))
    chosen = np.unique(np.linspace(0, ranks - 1, min(ranks, share)).round().astype(int)).tolist()
    step = max(1, tokens * len(chosen) * PLANNED_SAMPLES // PLANNED_TOKENS)
    layers = []
    for layer in range(len(model.moe_index)):
        drawn = [
            own.draw(layer, PLANNED_SAMPLE + sample, source, source + 1).choices[0, ::step]
            for sample in range(PLANNED_SAMPLES)
            for source in chosen
        ]
        layers.append(pair_counts(np.concatenate(drawn)[:, None, :], model.scenario.model.n_experts)[0])
    return np.array(layers)


def placement_notes(model: StepModel) -> list[str]:
    """How experts are placed and by what that was planned; nothing where they stand in order."""
    held, spec = placement(model), model.scenario.placement
    if held is None:
        return []
    where = held.placement
    parts = [f"placement {spec.strategy}: {where.slots} slots a rank and layer"]
    if where.redundant:
        parts.append(
            f"{where.redundant} redundant experts a layer, replicas chosen {spec.replica_choice}, their gradients"
            " summed once a step"
        )
    if spec.strategy in BY_LOAD or spec.replica_choice == "load-proportional":
        known = "the loads that its own routing is expected to have, known in hindsight"
        parts.append(f"planned on {known if spec.planned_from is None else spec.planned_from}")
    return ["; ".join(parts)]
