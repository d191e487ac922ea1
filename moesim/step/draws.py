"""The load of a scenario: where its choices come from for the simulation, and its moments for the closed form.

L MoE layers, E experts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.catalog import recorded
from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing import moments
from moesim.routing.balancing import history
from moesim.routing.drawn import Draws
from moesim.routing.loads import layer_weights
from moesim.routing.moments import Moments
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_draws import CountSampler, ProfileDraws
from moesim.routing.race_draws import RaceDraws, race_law
from moesim.routing.routers.base_layers import Base
from moesim.routing.routers.gshard import GShardTop2
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.successive import tempered
from moesim.routing.routers.top_k import TopKRouter
from moesim.routing.rule_draws import EvenDraws, RuleDraws
from moesim.routing.shared_draws import SlicedDraws, ThinnedDraws
from moesim.scenario.scenario import Scenario
from moesim.specs.routing import LoadProfile
from moesim.step.model import StepModel
from moesim.traces import store
from moesim.traces.replay import ReplayDraws, replay_moments
from moesim.traces.trace import RouterTrace

RACES = (TopKRouter, GShardTop2, Hash)
"""Rules that are a filter over the order in which experts arrive in a race; the others choose from logits."""


class Shares(NamedTuple):
    """How an expert-parallel group's source ranks share sequences: `share` ranks hold slices of the same `sequences`,
    in `replicas` groups (the last perhaps cut short); `tokens` of a replica, and how many are drawn for them."""

    share: int
    replicas: int
    sequences: int
    tokens: int
    drawn: int


def shares(model: StepModel) -> Shares:
    """Tensor- and context-parallel ranks share sequences; an expert-tensor group gathers several ranks' tokens."""
    scenario, layout = model.scenario, model.scenario.parallelism
    parts, gathered = layout.tensor * layout.context, layout.expert_tensor
    share = max(1, parts // gathered)
    sequences = scenario.workload.micro_batch * max(1, gathered // parts)
    tokens = scenario.tokens_per_rank * gathered * share
    return Shares(share, -(-layout.expert // share), sequences, tokens, drawn_tokens(model) * share)


def draws(model: StepModel) -> Draws:
    """Where the choices of the scenario's tokens come from."""
    scenario, streams = model.scenario, Streams(model.scenario.routing.seed)
    rule, shared = scenario.router, shares(model)
    if isinstance(rule, Base) and rule.balanced:
        return EvenDraws(rule.experts, tokens_per_rank=drawn_tokens(model), streams=streams)
    law = _law(model, shared, streams)
    if shared.share > 1:
        law = SlicedDraws(law, share=shared.share, sequences=shared.sequences)
    if scenario.routing.load.trace is not None:
        return law
    if isinstance(rule, GShardTop2):
        threshold = rule.spec.second_threshold
        return (
            law if threshold is None else ThinnedDraws(law, threshold=threshold, experts=rule.experts, streams=streams)
        )
    if isinstance(rule, RACES):
        return law
    return RuleDraws(rule, law, sequences_per_rank=shared.sequences, streams=streams)


def _law(model: StepModel, shared: Shares, streams: Streams) -> Draws:
    """Choices of whole replicas, as a plain race has them."""
    load, rule, layers = model.scenario.routing.load, model.scenario.router, len(model.moe_index)
    if load.trace is not None:
        return ReplayDraws(
            trace(load.trace),
            layers=layers,
            ranks=shared.replicas,
            tokens_per_rank=shared.drawn,
            sequences_per_rank=shared.sequences,
            streams=streams,
            moment=load.moment,
            mix=load.mix,
            blocks=load.blocks,
        )
    if load.fitted is not None and not isinstance(rule, Hash):
        return ProfileDraws(
            profile(load.fitted),
            router_law=race_law(rule),
            layers=layers,
            ranks=shared.replicas,
            tokens_per_rank=shared.drawn,
            sequences_per_rank=shared.sequences,
            streams=streams,
            mix=load.mix,
            moment=load.moment,
            blocks=load.blocks,
            stands_for=model.scenario.tokens_stood_for,
        )
    weights = _popularity(model)
    if isinstance(rule, RACES):
        weights = tempered(weights, rule.spec.noise, rule.top_k)
    return RaceDraws(
        rule,
        LoadProfile() if isinstance(rule, Hash) else load,
        weights,
        ranks=shared.replicas,
        tokens_per_rank=shared.drawn,
        sequences_per_rank=shared.sequences,
        streams=streams,
    )


def exact_copies(model: StepModel) -> bool:
    """Whether every token has as many copies as the router says, rather than about as many."""
    load = model.scenario.routing.load
    if load.fitted is not None and profile(load.fitted).width[:, -1].min() < 1.0:
        return False
    return not model.scenario.router.variable and load.trace is None


@lru_cache(maxsize=2)
def load_moments(model: StepModel) -> Moments:
    """What the closed form knows of the same load."""
    scenario = model.scenario
    load, rule, layers = scenario.routing.load, scenario.router, len(model.moe_index)
    shared = shares(model)
    if load.trace is not None:
        return replay_moments(
            trace(load.trace), layers, shared.tokens // shared.sequences, load.mix, load.moment, load.blocks
        )
    if load.fitted is not None:
        counted = CountSampler(
            profile(load.fitted),
            layers=layers,
            mix=load.mix,
            moment=load.moment,
            tokens_per_rank=shared.tokens,
            sequences_per_rank=shared.sequences,
            blocks=load.blocks,
            top_k=rule.top_k,
            expected=None if isinstance(rule, TopKRouter) else rule.expected,
        )
        return moments.of_choices(rule, *counted.moments())
    return moments.of_profile(rule, load, _popularity(model), Streams(scenario.routing.seed))


def load_notes(model: StepModel) -> list[str]:
    """What to know about a load that was recorded: sequences longer than any recorded one."""
    load = model.scenario.routing.load
    if not model.scenario.model.is_moe or (load.fitted is None and load.trace is None):
        return []
    shared = shares(model)
    length = shared.tokens // shared.sequences
    if load.fitted is not None:
        longest, then = int(profile(load.fitted).length.max()), "each keeps one recorded sequence's taste throughout"
    elif load.trace is not None:
        longest = int(np.diff(trace(load.trace).starts).max())
        then = "each is made of several recorded ones of one domain"
    if length < 2 * longest:
        return []
    return [f"sequences of {length:,} tokens are longer than any recorded ({longest:,}): {then}"]


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
    every = max(1, load.balancing.steps // max(1, rows - 1))
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


def drawn_tokens(model: StepModel) -> int:
    """Tokens of a rank and microbatch that are drawn."""
    scenario = model.scenario
    return scenario.tokens_per_rank * scenario.parallelism.expert_tensor // scenario.tokens_stood_for
