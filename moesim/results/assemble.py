"""Puts a run's answer together: metrics, breakdown, memory, notes; refuses what does not fit in memory."""

from __future__ import annotations

import numpy as np

from moesim.costs.memory import coefficients, verdict
from moesim.errors import InfeasibleError
from moesim.network.topology import degraded_note
from moesim.results.result import Columns, Result, Road
from moesim.results.summary import Observed, Summary, doubts
from moesim.scenario.scenario import Scenario
from moesim.step.draws import load_notes
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork
from moesim.step.stack import stack_note
from moesim.units import show


def assemble(
    model: StepModel, routed: RoutedWork | None, observed: Observed, road: Road, columns: Columns | None = None
) -> Result:
    """The result of one road."""
    scenario = model.scenario
    memory = memory_parts(model, routed)
    summary = Summary(model, routed, observed, memory)
    return Result(
        name=scenario.name,
        question=scenario.question,
        road=road,
        scenario=scenario.document(),
        summary=summary.metrics(),
        breakdown=summary.breakdown(),
        memory=memory,
        notes=_notes(model, road),
        operation_columns=columns,
        routing_columns=routing_columns(model, routed) if routed is not None else None,
        traffic=routed.traffic if routed is not None else None,
    )


def require_memory(scenario: Scenario, parts: dict[str, float]) -> None:
    """Raises `InfeasibleError` where the fullest GPU needs far more than it has, naming the largest part."""
    need, have = sum(parts.values()), scenario.cluster.gpu.memory
    if verdict(need, have) != "infeasible":
        return
    name = max(parts, key=lambda part: parts[part])
    relax = {
        "activations": "recompute: full, a smaller micro_batch, more context or tensor parallelism, or off-loading",
        "optimizer": "data_sharding: optimizer, optimizer: adam-bf16-moments, or more GPUs",
        "expert optimizer": "data_sharding: optimizer, optimizer: adam-bf16-moments, more expert parallelism or GPUs",
        "gradients": "gradients: bf16, data_sharding: gradients, or more pipeline or tensor parallelism",
        "expert gradients": "gradients: bf16, data_sharding: gradients, or more expert or pipeline parallelism",
        "expert weights": "more expert or pipeline parallelism",
        "weights": "more pipeline or tensor parallelism, or data_sharding: full",
    }.get(name, "more GPUs to a model replica, or GPUs with more memory")
    raise InfeasibleError(
        f"{scenario.name}: does not fit in memory: the fullest GPU needs {show(need, 'B')} of {show(have, 'B')}"
        f" (limit {coefficients()['infeasible']:.2f} x); binding: {name}, {show(parts[name], 'B')};"
        f" it would relax with {relax}"
    )


def _notes(model: StepModel, road: Road) -> tuple[str, ...]:
    scenario = model.scenario
    notes = []
    if scenario.model.is_moe and scenario.parallelism.expert > 1:
        notes.append(f"dispatcher {model.mover.dispatcher.name}: {model.mover.reason}")
        notes += model.mover.even.notes
        degraded = degraded_note(model.mover.network)
        notes += [degraded] if degraded else []
        if road == "simulate":
            groups = scenario.cluster.gpus // (scenario.parallelism.pipeline * scenario.parallelism.expert)
            groups //= scenario.parallelism.expert_tensor
            if groups > 1:
                notes.append(f"one of {groups} expert-parallel groups is simulated through all pipeline ranks")
    notes.append(stack_note(scenario.stack))
    notes += doubts(model)
    disturbed = scenario.simulation.jitter or scenario.simulation.stragglers
    if road == "estimate" and disturbed:
        notes.append("jitter and stragglers are not in the closed form: simulate")
    if scenario.stack_options.offload_layers:
        notes.append("off-loading is assumed to hide behind compute: its transfers are not priced")
    notes += load_notes(model)
    if scenario.routing.load.note and scenario.model.is_moe:
        notes.append(f"load {scenario.routing.load.name}: {scenario.routing.load.note}")
    return tuple(dict.fromkeys(notes))


def routing_columns(model: StepModel, routed: RoutedWork) -> Columns:
    """One row a (layer, sample, expert): columns of `moesim.columns.ROUTING`."""
    layers, samples, experts = routed.expert_routed.shape
    moe = np.array(sorted(model.moe_index), dtype=np.int32)
    ranks = model.scenario.parallelism.expert
    rank = (np.arange(experts) // max(1, experts // ranks)).astype(np.int32)
    return {
        "layer": np.repeat(moe, samples * experts),
        "sample": np.tile(np.repeat(np.arange(samples, dtype=np.int32), experts), layers),
        "expert": np.tile(np.arange(experts, dtype=np.int32), layers * samples),
        "rank": np.tile(rank, layers * samples),
        "tokens": routed.expert_routed.ravel().astype(np.int64),
        "kept": routed.expert_kept.ravel().astype(np.int64),
    }
