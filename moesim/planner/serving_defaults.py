"""What a plan of serving searches where the user says nothing: from model, cluster and requests, each a function."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from typing import Any

from moesim.costs.compute import peak
from moesim.iteration import memory
from moesim.planner.defaults import divisors, powers
from moesim.planner.serving_fields import Part, Wanted
from moesim.scenario.degrees import undivided
from moesim.scenario.serving import ServingScenario
from moesim.serving.demand import demand_of
from moesim.specs import parameters
from moesim.specs.serving import InstanceSpec

BUDGETS = (2048, 8192)
"""Tokens of an iteration and attention replica that are tried: for short pauses, and for throughput."""
SPARE = 8
"""One redundant expert for so many."""
LARGEST = 8
"""Times the least GPUs that hold the model, up to which an instance is tried unasked; ranks that share an expert."""
STEPS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Sizes of cluster, over the least that could do."""
MOST_HELD, MOST_BUSY = 8, 32
"""How far they reach: times what holds the model, and what does the arithmetic at the GPU's peak."""
BLIND = ("contiguous", "round-robin")


def least_held(base: ServingScenario) -> float:
    """GPUs that the weights alone need of the memory given to the engine."""
    held = sum(memory.weights(base, InstanceSpec(gpus=1)).values())
    return float(held / (base.cluster.gpu.memory * base.engine.kv_cache_fraction))


def gpu_counts(base: ServingScenario, most: int | None) -> tuple[int, ...]:
    """Sizes of cluster from the least that hold the model and do the arithmetic of the requests at the GPU's peak,
    upwards; beyond a limit one more, so that what it keeps out can be told."""
    demand = demand_of(base)
    work = demand.rate * (demand.new + demand.output) * parameters.flops_per_token(base.model, 1)
    busy = work / parameters.FORWARD_AND_BACKWARD / peak(base.cluster.gpu, base.precision.compute)
    holds = 1 << max(0, ceil(log2(max(1.0, least_held(base)))))
    first, reach = max(holds, 1 << max(0, ceil(log2(max(1.0, busy))))), max(MOST_HELD * holds, MOST_BUSY * busy)
    counts = {int(first * step) for step in STEPS if (first * step) % 1 == 0 and (step == 1 or first * step <= reach)}
    if most is None:
        return tuple(sorted(counts))
    beyond = [count for count in sorted(counts) if count > most]
    within = {count for count in counts if count <= most}
    return tuple(sorted(within | ({most} if most >= least_held(base) else set()) | set(beyond[:2])))


def instance_sizes(base: ServingScenario, counts: tuple[int, ...], stated: bool) -> tuple[int, ...]:
    """GPUs of an instance: powers of two from the least that hold the model; and a stated cluster as one instance."""
    least = 1 << max(0, ceil(log2(max(1.0, least_held(base)))))
    found = {least * step for step in powers(LARGEST) if least * step <= max(counts)}
    if stated:
        found |= {count for count in counts if least_held(base) <= count <= least * LARGEST}
    return tuple(sorted(found or {max(counts)}))


def degrees(base: ServingScenario, gpus: int, wanted: Wanted, part: Part | None) -> dict[str, tuple[Any, ...]]:
    """The degrees to try in instances of so many GPUs, by name."""
    model, domain = base.model, base.cluster.gpus_per_domain
    stages = (1,) if gpus <= domain or gpus % domain else (1, gpus // domain)
    found: dict[str, tuple[Any, ...]] = {
        "tensor": tuple(one for one in powers(min(gpus, domain)) if not undivided(model, one) and gpus % one == 0),
        "pipeline": tuple(one for one in stages if one <= model.layers),
        "expert": tuple(one for one in divisors(model.n_experts) if gpus % one == 0 and gpus // one <= LARGEST)
        if model.is_moe
        else (1,),
        "expert_tensor": ("auto",),
        "attention_data_parallel": ("auto",),
    }
    return {name: wanted.of(name, part) or values or (1,) for name, values in found.items()}


def apart(base: ServingScenario) -> tuple[bool, ...]:
    """Whether prompts and outputs may have instances of their own."""
    return (False, True) if base.workload.kind == "serving" else (False,)


def settings(base: ServingScenario, wanted: Wanted, stated: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[str]]:
    """What candidates are run with, as rows of `serving_reading.Settings`' fields, and what was assumed."""
    experts, values, notes = base.model.n_experts, wanted.values, []
    spare = (0, *([experts // SPARE] if base.model.is_moe and experts >= SPARE else []))
    redundant = values.get("placement.redundant_experts", spare)
    budgets = values.get("engine.token_budget", tuple(dict.fromkeys((*BUDGETS, base.engine.token_budget))))
    halves = values.get("engine.two_batch_overlap", (False, True) if base.model.is_moe else (False,))
    first, then = (values.get(f"dispatcher.{part}", ("auto",)) for part in ("prefill", "decode"))
    if any(redundant) and "strategy" not in stated:
        notes.append("redundant experts are placed by the global strategy (placement.strategy states another)")
    notes.append(f"engine.token_budget {', '.join(f'{one:,}' for one in budgets)} an attention replica")
    rows = [(r, b, h, (d, e)) for r in redundant for b in budgets for h in halves for d in first for e in then]
    return tuple(rows), notes
