"""The load of a scenario: where its choices come from for the simulation, and its moments for the closed form.

L MoE layers, E experts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.catalog import recorded
from moesim.errors import UserError
from moesim.placement import expert_rank
from moesim.randomness import Streams
from moesim.routing import moments
from moesim.routing.balancing import history
from moesim.routing.drawn import Draws
from moesim.routing.loads import layer_weights
from moesim.routing.moments import Moments
from moesim.routing.overflow import Gating
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_draws import CountSampler, ProfileDraws
from moesim.routing.race_draws import RaceDraws, race_law
from moesim.routing.routers.base_layers import Base
from moesim.routing.routers.gshard import GShardTop2
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.successive import tempered
from moesim.routing.routers.top_k import TopKRouter
from moesim.routing.rule_draws import EvenDraws, RuleDraws
from moesim.routing.sampler import RoutingSampler
from moesim.scenario.scenario import Scenario
from moesim.specs.model import RouterSpec
from moesim.step.model import StepModel
from moesim.traces import store
from moesim.traces.replay import ReplayDraws, replay_moments
from moesim.traces.trace import RouterTrace

RACES = (TopKRouter, GShardTop2, Hash)
"""Rules that are a filter over the order in which experts arrive in a race; the others choose from logits."""


def routing_sampler(model: StepModel) -> RoutingSampler:
    """The token-level sampler of the scenario's router, load and capacity."""
    scenario, layout, capacity = model.scenario, model.scenario.parallelism, model.scenario.routing.capacity
    return RoutingSampler(
        draws(model),
        top_k=scenario.model.top_k,
        tokens_per_rank=_tokens(model),
        ranks=layout.expert,
        ranks_per_domain=model.mover.network.ranks_per_domain,
        capacity=None if capacity == "dropless" else capacity,
        placement=expert_rank(scenario.model.n_experts, layout.expert, scenario.placement.strategy),
        streams=Streams(scenario.routing.seed),
        gating=_gating(scenario.model.router),
    )


def _gating(spec: RouterSpec) -> Gating:
    """What a router's gates are, as the priority of capacity sees them."""
    if spec.rule == "sigmoid-top-k":
        return "sigmoid"
    return "renormalized" if spec.renormalize else "softmax"


def draws(model: StepModel) -> Draws:
    """Where the choices of the scenario's tokens come from."""
    scenario = model.scenario
    load, rule, streams = scenario.routing.load, scenario.router, Streams(scenario.routing.seed)
    layers, ranks, tokens = len(model.moe_index), scenario.parallelism.expert, _tokens(model)
    sequences = scenario.workload.micro_batch
    law: Draws
    if load.trace is not None:
        return ReplayDraws(
            trace(load.trace),
            layers=layers,
            ranks=ranks,
            tokens_per_rank=tokens,
            sequences_per_rank=sequences,
            streams=streams,
            moment=load.moment,
            mix=load.mix,
            blocks=load.blocks,
        )
    if load.fitted is not None:
        law = ProfileDraws(
            profile(load.fitted),
            router_law=race_law(rule),
            layers=layers,
            ranks=ranks,
            tokens_per_rank=tokens,
            sequences_per_rank=sequences,
            streams=streams,
            mix=load.mix,
            moment=load.moment,
            blocks=load.blocks,
        )
    else:
        weights = tempered(_popularity(model), scenario.model.router.noise, rule.top_k)
        law = RaceDraws(
            rule, load, weights, ranks=ranks, tokens_per_rank=tokens, sequences_per_rank=sequences, streams=streams
        )
    if isinstance(rule, RACES):
        return law
    if isinstance(rule, Base) and rule.balanced:
        return EvenDraws(rule.experts, tokens_per_rank=tokens, streams=streams)
    return RuleDraws(rule, law, sequences_per_rank=sequences, streams=streams)


def load_moments(model: StepModel) -> Moments:
    """What the closed form knows of the same load."""
    scenario = model.scenario
    load, rule, layers = scenario.routing.load, scenario.router, len(model.moe_index)
    if load.trace is not None:
        tokens = _tokens(model) // scenario.workload.micro_batch
        return replay_moments(trace(load.trace), layers, tokens, load.mix, load.moment)
    if load.fitted is not None:
        counted = CountSampler(
            profile(load.fitted),
            layers=layers,
            mix=load.mix,
            moment=load.moment,
            tokens_per_rank=_tokens(model),
            sequences_per_rank=scenario.workload.micro_batch,
            top_k=rule.top_k,
            expected=None if isinstance(rule, TopKRouter) else rule.expected,
        )
        return moments.of_choices(rule, *counted.moments())
    return moments.of_profile(rule, load, _popularity(model), Streams(scenario.routing.seed))


def evolution(scenario: Scenario, rows: int) -> list[dict[str, float]]:
    """How the scenario's load evolves while training balances it: max/mean and nearly idle experts (below a tenth of
    the mean) at about `rows` steps, means over the MoE layers. Raises UserError where nothing balances it."""
    load = scenario.routing.load
    if load.balancing is None or not scenario.model.is_moe:
        raise UserError(
            "routing.load.balancing is absent: say, for instance,"
            " routing.load.balancing={kind: bias-update, rate: 0.001, steps: 3000}"
        )
    layers, streams = len(StepModel(scenario).moe_index), Streams(scenario.routing.seed)
    before = load.model_copy(update={"balancing": None, "newcomers": None})
    logs = np.log(layer_weights(before, scenario.model.n_experts, layers, scenario.model.top_k, streams))
    every = max(1, load.balancing.steps // (rows - 1))
    return [
        {"step": step, "max_over_mean": most, "nearly_idle": idle}
        for step, most, idle in history(logs, scenario.model.top_k, load.balancing, every)
    ]


def _popularity(model: StepModel) -> NDArray[np.float64]:
    """What experts weigh in each MoE layer [L, E] by the scenario's simple law; a hash table has its own."""
    scenario, rule = model.scenario, model.scenario.router
    layers, even = len(model.moe_index), np.ones(rule.experts)
    if isinstance(rule, Hash):
        return np.tile(rule.expected(even) * rule.experts, (layers, 1))
    streams = Streams(scenario.routing.seed)
    return layer_weights(scenario.routing.load, rule.experts, layers, rule.top_k, streams)


@lru_cache(maxsize=4)
def trace(name: str) -> RouterTrace:
    """A recorded trace by its name in the catalog or its path; mapped, not read."""
    return store.load(recorded.find("traces", name))


@lru_cache(maxsize=4)
def profile(name: str) -> RoutingProfile:
    """A fitted profile by its name in the catalog or its path."""
    return RoutingProfile.load(recorded.find("fitted", name))


def _tokens(model: StepModel) -> int:
    scenario = model.scenario
    return scenario.tokens_per_rank * scenario.parallelism.expert_tensor // scenario.tokens_stood_for
