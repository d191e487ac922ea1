"""The engines of a run, ready to work: rules, law and imbalance of each pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.iteration.law import IterationLaw
from moesim.randomness import Streams
from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.engine import Rules
from moesim.serving.expert_cache import CacheDraws, ExpertCaches, expert_caches
from moesim.serving.imbalance import Draws, ImbalanceLaw, Imbalances
from moesim.serving.pricing import Law
from moesim.serving.routed_samples import sampled_imbalances
from moesim.specs.serving import Phase
from moesim.units import show

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EnginePool:
    """`count` engines that are alike; `phase` says what of a request they do; `gpus` of one; `caches`: what they keep
    of their experts, where they do not hold all."""

    phase: Phase
    count: int
    rules: Rules
    law: Law
    imbalance: Imbalances
    streams: Streams
    gpus: int = 1
    caches: ExpertCaches | None = None

    def draws(self, index: int) -> Draws:
        """The imbalance of engine `index`, from a stream of its own."""
        return Draws(self.imbalance, self.streams.generator(f"serving/imbalance/{self.phase}{index}"))

    def fetches(self, index: int) -> CacheDraws | None:
        """What engine `index` fetches from host memory, from a stream of its own; None where it holds all experts."""
        if self.caches is None:
            return None
        return CacheDraws(self.caches, self.streams.generator(f"serving/experts/{self.phase}{index}"))

    def transfer_seconds(self, tokens: int) -> float:
        """How long a KV cache of so many tokens takes from a replica of this engine to another engine."""
        return float(self.law.kv_transfer_seconds(float(tokens)))


def engine_pools(scenario: ServingScenario, laws: list[IterationLaw]) -> list[EnginePool]:
    """The pools of a scenario with the law of each. Raises `InfeasibleError` where weights and buffers leave no room
    for a KV cache."""
    return [_pool(scenario, pool, law) for pool, law in zip(scenario.pools, laws, strict=True)]


def pool_laws(scenario: ServingScenario) -> list[IterationLaw]:
    """The iteration law of each pool."""
    return [IterationLaw(scenario, pool.instance, pool.phase) for pool in scenario.pools]


def _pool(scenario: ServingScenario, pool: Pool, law: IterationLaw) -> EnginePool:
    engine, instance = scenario.engine, pool.instance
    room = law.kv_capacity_tokens // instance.replicas
    if room < 1:
        given = scenario.cluster.gpu.memory * engine.kv_cache_fraction
        taken = sum(value for name, value in law.memory_parts.items() if name != "kv_cache")
        raise InfeasibleError(
            f"{scenario.name}: weights and buffers of a {pool.phase} instance take {show(taken, 'B')} a GPU of the"
            f" {show(given, 'B')} that kv_cache_fraction gives: no room for a KV cache; use more GPUs an instance,"
            " a higher kv_cache_fraction, a smaller token_budget or narrower formats"
        )
    rules = Rules(
        replicas=instance.replicas,
        token_budget=engine.token_budget,
        max_requests=engine.max_requests,
        kv_tokens=room,
        chunked_prefill=engine.chunked_prefill,
        tokens_per_step=engine.speculative_tokens,
        positions=1 + engine.drafted,
    )
    imbalance = Imbalances.even()
    if scenario.model.is_moe:
        imbalance = sampled_imbalances(scenario, law)
    streams, caches = Streams(scenario.simulation.seed), expert_caches(scenario, pool, law)
    return EnginePool(pool.phase, pool.count, rules, law, imbalance, streams, instance.gpus, caches)


__all__ = ["EnginePool", "ImbalanceLaw", "engine_pools", "pool_laws"]
