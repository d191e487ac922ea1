"""Rows of every expert and rank in an iteration, as the scenario's load leads one to expect them.

L layers looked at, E experts, R expert-parallel ranks, P slots of a rank, G token counts. The moments of the load and
the spread that sampling shows are those of training's closed form; a decoding request is a sequence of its own, prompts
are as long as the workload's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.placement import Placement, place, replica_shares
from moesim.placement.placed import target_of
from moesim.placement.source import observe_named
from moesim.randomness import Streams
from moesim.routing import moments
from moesim.routing.loads import layer_weights
from moesim.routing.moments import Moments
from moesim.routing.profile_draws import CountSampler
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.top_k import TopKRouter
from moesim.routing.sequences import depth
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec
from moesim.step.draws import profile, trace
from moesim.traces.replay import replay_moments

Floats = NDArray[np.float64]
_LAYERS = 6
# Moments of loads asked for lately: those of a fitted load take a second, and a sweep asks for the same ones each time.
_KNOWN: dict[str, Moments] = {}
_MOST_KNOWN = 8
_SEQUENCE = 1024


@dataclass(frozen=True)
class Peaks:
    """Busiest over mean [G]: of expert-parallel ranks and of experts."""

    rank: Floats
    expert: Floats


class RoutedLoad:
    """The load of one instance's experts; `ranks_per_domain` as the expert-parallel group sits on the cluster."""

    def __init__(self, scenario: ServingScenario, instance: InstanceSpec, ranks_per_domain: int) -> None:
        self.scenario, self.ranks, self.ranks_per_domain = scenario, instance.expert, ranks_per_domain

    @cached_property
    def layers(self) -> NDArray[np.int64]:
        """The MoE layers looked at [L], spread evenly over the model's."""
        count = self.scenario.model.moe_layers
        return np.unique(np.linspace(0, count - 1, min(count, _LAYERS)).round().astype(np.int64))

    @cached_property
    def moments(self) -> Moments:
        """Of one token's copies at each expert [L, E], of layers spread evenly over the model's MoE layers."""
        scenario = self.scenario
        key = f"{scenario.routing.model_dump_json()} {scenario.model.model_dump_json()}"
        if key not in _KNOWN:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = self._moments()
        return _KNOWN[key]

    def _moments(self) -> Moments:
        scenario, load = self.scenario, self.scenario.routing.load
        rule, layers = scenario.router, scenario.model.moe_layers
        if load.trace is not None:
            found = replay_moments(trace(load.trace), layers, _SEQUENCE, load.mix, load.moment, load.blocks)
        elif load.fitted is not None:
            expected = None if isinstance(rule, TopKRouter) else rule.expected
            counted = CountSampler(
                profile(load.fitted), layers=layers, mix=load.mix, moment=load.moment, tokens_per_rank=_SEQUENCE,
                blocks=load.blocks, top_k=rule.top_k, expected=expected,
            )  # fmt: skip
            found = moments.of_choices(rule, *counted.moments())
        else:
            found = moments.of_profile(rule, load, self._popularity(layers), Streams(scenario.routing.seed))
        some = self.layers
        return Moments(found.chance[some], found.within[some], found.between[some], found.shared[some])

    def _popularity(self, layers: int) -> Floats:
        scenario, rule = self.scenario, self.scenario.router
        if isinstance(rule, Hash):
            return np.tile(rule.expected(np.ones(rule.experts)) * rule.experts, (layers, 1))
        streams = Streams(scenario.routing.seed)
        return layer_weights(scenario.routing.load, rule.experts, layers, rule.top_k, streams)

    @cached_property
    def placement(self) -> Placement:
        """Which slot holds which expert, planned from the load's own mean or from what `planned_from` recorded."""
        spec, model = self.scenario.placement, self.scenario.model
        target = target_of(spec, self.ranks, self.ranks_per_domain, model.router.groups)
        if spec.planned_from is None:
            return place(spec.strategy, target, self.moments.chance)
        found = observe_named(spec.planned_from, model, [f"top_k={model.top_k}"])
        halves = [half.loads for half in (found.fit, found.held_out) if half is not None]
        loads = np.sum(halves, axis=0)[depth(model.moe_layers, len(found.model_layers))]
        return place(spec.strategy, target, loads[self.layers])

    def experts(self, tokens: Floats, sequences: Floats) -> Floats:
        """Rows [G, L, E] of every expert of `tokens` tokens in so many sequences."""
        known = self.moments
        layers, experts = known.chance.shape
        scores = _scores(layers, experts, self.scenario.routing.seed)
        many, apart = tokens[:, None, None], np.maximum(sequences, 1.0)[:, None, None]
        mean = many * known.chance
        variance = many * known.within + many**2 * (known.between / apart + known.shared)
        width = np.sqrt(np.log1p(variance / np.maximum(mean, 1e-300) ** 2))
        rows = mean * np.exp(width * scores - width**2 / 2)
        total = np.maximum(rows.sum(axis=-1, keepdims=True), 1e-300)
        return np.asarray(rows * (mean.sum(axis=-1, keepdims=True) / total))

    def chances(self, sequences: Floats) -> Floats:
        """Chance [G, L, E] that a token of so many sequences [G], taken together, is for an expert."""
        known = self.moments
        layers, experts = known.chance.shape
        scores = _scores(layers, experts, self.scenario.routing.seed)
        variance = known.between / np.maximum(sequences, 1.0)[:, None, None] + known.shared
        width = np.sqrt(np.log1p(variance / np.maximum(known.chance, 1e-300) ** 2))
        found = known.chance * np.exp(width * scores - width**2 / 2)
        total = np.maximum(found.sum(axis=-1, keepdims=True), 1e-300)
        return np.asarray(found * (known.chance.sum(axis=-1, keepdims=True) / total))

    def slots(self, tokens: Floats, sequences: Floats) -> Floats:
        """Rows [G, L, R, P] of every slot, replicas taking what the replica choice gives them."""
        spec, placed = self.scenario.placement, self.placement
        # The mean over sources: who sends does not matter to how much a slot gets.
        share = replica_shares(placed, spec.replica_choice, self.ranks_per_domain, self.moments.chance).mean(axis=1)
        rows = self.experts(tokens, sequences)
        index = np.broadcast_to(placed.physical, (len(rows), *placed.physical.shape))
        by_slot = np.take_along_axis(rows, index, axis=-1) * share
        return np.asarray(by_slot.reshape(*by_slot.shape[:2], placed.ranks, placed.slots))

    def busiest(self, tokens: Floats, sequences: Floats) -> Floats:
        """Rows [G, L, P] of the slots of the rank with the most rows."""
        slots = self.slots(tokens, sequences)
        most = slots.sum(axis=-1).argmax(axis=-1)
        return np.asarray(np.take_along_axis(slots, most[:, :, None, None], axis=2)[:, :, 0, :])

    def peaks(self, tokens: Floats, sequences: Floats) -> Peaks:
        """max/mean over ranks and over experts [G], the mean over the layers."""
        ranks = self.slots(tokens, sequences).sum(axis=-1)
        experts = self.experts(tokens, sequences)
        return Peaks(*(_peak(found) for found in (ranks, experts)))


def _peak(loads: Floats) -> Floats:
    mean = np.maximum(loads.mean(axis=-1), 1e-300)
    return np.asarray((loads.max(axis=-1) / mean).mean(axis=-1))


def _scores(layers: int, experts: int, seed: int) -> Floats:
    """Expected order statistics of a normal sample (Blom), shuffled by layer."""
    normal = NormalDist()
    scores = np.array([normal.inv_cdf((rank + 0.625) / (experts + 0.25)) for rank in range(experts)])
    return Streams(seed).generator("iteration/scores").permuted(np.tile(scores, (layers, 1)), axis=1)
