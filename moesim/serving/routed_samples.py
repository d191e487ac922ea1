"""Token-level routing samples of an engine's batches, once before a run: what `imbalance` draws from.

T tokens of the whole engine, S of them decoding requests or prompts of their own, L layers, E experts, G batch sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.iteration.law import IterationLaw
from moesim.placement import replica_shares
from moesim.randomness import Streams
from moesim.routing.drawn import Draws
from moesim.routing.loads import layer_weights
from moesim.routing.profile_draws import ProfileDraws
from moesim.routing.race_draws import RaceDraws, race_law
from moesim.routing.routers.base_layers import Base
from moesim.routing.routers.gshard import GShardTop2
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.successive import tempered
from moesim.routing.rule_draws import EvenDraws, RuleDraws
from moesim.routing.shared_draws import ThinnedDraws
from moesim.scenario.serving import ServingScenario
from moesim.serving.imbalance import ImbalanceLaw, Imbalances
from moesim.specs.routing import LoadProfile
from moesim.step.draws import RACES, profile, trace
from moesim.traces.replay import ReplayDraws

Floats = NDArray[np.float64]
SIZES = (8, 32, 128, 512, 2048, 8192, 32768)
"""Tokens of a batch that are sampled; beyond the largest a batch is as uneven as there: popularity alone is left."""
MOST_SEQUENCES = 1024
"""Sequences of a batch that are sampled at most: each has weights of its own where the load tilts them."""
RULE_MOST = 2048
"""The most for rules that choose from logits, which are a hundred times slower to draw."""
SAMPLES = 8


def sampled_imbalances(scenario: ServingScenario, law: IterationLaw) -> Imbalances:
    """The imbalance of an engine's iterations with prompts and without; each decoding request is its own sequence."""
    work = scenario.workload
    prompt = work.input_tokens.average if work.input_tokens else 1024.0
    alone = _law(scenario, law, prompt if law.phase == "prefill" else 1.0)
    return Imbalances(_law(scenario, law, prompt) if law.phase == "mixed" else alone, alone)


def _law(scenario: ServingScenario, law: IterationLaw, sequence: float) -> ImbalanceLaw:
    """Samples at every size, for sequences of so many tokens each."""
    race = isinstance(scenario.router, RACES) or scenario.routing.load.trace is not None
    sizes = [size for size in SIZES if (race or size <= RULE_MOST) and size <= MOST_SEQUENCES * sequence]
    found = np.array([_moments(scenario, law, size, max(1, round(size / sequence))) for size in sizes])
    return ImbalanceLaw(np.array(sizes, np.float64), *found.T)


def _moments(scenario: ServingScenario, law: IterationLaw, tokens: int, sequences: int) -> tuple[float, ...]:
    """Mean and deviation of an iteration's max/mean over ranks and over experts, of batches of one size."""
    layers = law.load.layers
    draws = batch_draws(scenario, tokens, sequences)
    placed = law.load.placement
    shares = replica_shares(
        placed, scenario.placement.replica_choice, law.load.ranks_per_domain, law.load.moments.chance
    ).mean(axis=1)
    peaks = np.ones((2, SAMPLES, len(layers)))
    for at, layer in enumerate(layers.tolist()):
        for sample in range(SAMPLES):
            chosen = draws.draw(layer, sample, 0, 1).choices.ravel()
            rows = np.bincount(chosen, minlength=scenario.model.n_experts + 1)[: scenario.model.n_experts]
            ranks = (rows[placed.physical[at]] * shares[at]).reshape(placed.ranks, -1).sum(axis=1)
            peaks[:, sample, at] = (_peak(ranks), _peak(rows))
    rank, expert = (_spread(found, scenario.model.moe_layers) for found in peaks)
    return (*rank, *expert)


def _peak(load: NDArray[np.number]) -> float:
    total = float(load.sum())
    return float(load.max()) * len(load) / total if total else 1.0


def _spread(peaks: Floats, layers: int) -> tuple[float, float]:
    """Mean of [samples, L looked at], and the deviation of an iteration's mean over all `layers`: what the layers of a
    batch have in common (nothing but for recorded loads) stays whole, what is each layer's own averages out."""
    own = float(peaks.var(axis=0, ddof=1).mean())
    common = max(0.0, float(peaks.mean(axis=1).var(ddof=1)) - own / peaks.shape[1])
    return float(peaks.mean()), float(np.sqrt(common + own / layers))


def batch_draws(scenario: ServingScenario, tokens: int, sequences: int) -> Draws:
    """Where the choices of a batch of so many tokens come from."""
    rule, load, streams = scenario.router, scenario.routing.load, Streams(scenario.routing.seed)
    if isinstance(rule, Base) and rule.balanced:
        return EvenDraws(rule.experts, tokens_per_rank=tokens, streams=streams)
    law = _source(scenario, tokens, sequences, streams)
    if load.trace is not None:
        return law
    if isinstance(rule, GShardTop2) and rule.spec.second_threshold is not None:
        return ThinnedDraws(law, threshold=rule.spec.second_threshold, experts=rule.experts, streams=streams)
    return law if isinstance(rule, RACES) else RuleDraws(rule, law, sequences_per_rank=sequences, streams=streams)


def _source(scenario: ServingScenario, tokens: int, sequences: int, streams: Streams) -> Draws:
    """Choices as a plain race, a fitted profile or a recorded trace has them."""
    rule, load, layers = scenario.router, scenario.routing.load, scenario.model.moe_layers
    size = {"ranks": 1, "tokens_per_rank": tokens, "sequences_per_rank": sequences}
    if load.trace is not None:
        return ReplayDraws(
            trace(load.trace), layers=layers, streams=streams, moment=load.moment, mix=load.mix, blocks=load.blocks,
            **size,
        )  # fmt: skip
    if load.fitted is not None and not isinstance(rule, Hash):
        return ProfileDraws(
            profile(load.fitted), router_law=race_law(rule), layers=layers, streams=streams, mix=load.mix,
            moment=load.moment, blocks=load.blocks, **size,
        )  # fmt: skip
    if isinstance(rule, Hash):
        weights = np.tile(rule.expected(np.ones(rule.experts)) * rule.experts, (layers, 1))
        return RaceDraws(rule, LoadProfile(), weights, streams=streams, **size)
    weights = layer_weights(load, rule.experts, layers, rule.top_k, streams)
    if isinstance(rule, RACES):
        weights = tempered(weights, rule.spec.noise, rule.top_k)
    return RaceDraws(rule, load, weights, streams=streams, **size)
