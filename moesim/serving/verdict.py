"""Whether a serving scenario can be: weights and buffers beside a KV cache, requests no faster than they are served."""

from __future__ import annotations

from typing import Any

from moesim.iteration.law import IterationLaw
from moesim.scenario.serving import ServingScenario
from moesim.serving.closed_form import steady_state
from moesim.units import show


def judge_serving(scenario: ServingScenario) -> tuple[dict[str, Any], str | None]:
    """What each kind of instance holds, as plain data with a `sentence`; and why the scenario cannot be, or None."""
    laws = [IterationLaw(scenario, pool.instance, pool.phase) for pool in scenario.pools]
    have = scenario.cluster.gpu.memory * scenario.engine.kv_cache_fraction
    pools = []
    for pool, law in zip(scenario.pools, laws, strict=True):
        parts = law.memory_parts
        need = sum(value for name, value in parts.items() if name != "kv_cache")
        sentence = (
            f"{pool.count} {pool.phase} instance{'s' if pool.count > 1 else ''} of {pool.instance.gpus} GPUs: weights"
            f" and buffers take {show(need, 'B')} of {show(have, 'B')} a GPU, the KV cache of an instance holds"
            f" {law.kv_capacity_tokens:,} tokens"
        )
        pools.append({"phase": pool.phase, "need": need, "have": have, "parts": parts, "sentence": sentence})
    state = steady_state(scenario, laws)
    told = {"pools": pools, "sentence": "; ".join(str(one["sentence"]) for one in pools)}
    return told, None if state.feasible else f"{scenario.name}: {state.binding}"
