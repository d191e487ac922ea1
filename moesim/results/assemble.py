"""Puts a run's answer together: metrics, breakdown, memory, notes; refuses what does not fit in memory."""

from __future__ import annotations

import numpy as np

from moesim.costs.memory import coefficients, verdict
from moesim.errors import InfeasibleError
from moesim.network.topology import degraded_note
from moesim.results.relief import Reliefs, reliefs
from moesim.results.result import Columns, Result, Road
from moesim.results.summary import Observed, Summary, doubts
from moesim.scenario.scenario import Scenario
from moesim.step.draws import load_notes
from moesim.step.memory import fullest, memory_by_rank
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork
from moesim.step.stack import stack_note
from moesim.units import show


def assemble(
    model: StepModel, routed: RoutedWork | None, observed: Observed, road: Road, columns: Columns | None = None
) -> Result:
    """The result of one road."""
    scenario = model.scenario
    ranks = memory_by_rank(model, routed)
    fullest_rank = fullest(ranks)
    memory = ranks[fullest_rank]
    summary = Summary(model, routed, observed, memory)
    return Result(
        name=scenario.name,
        question=scenario.question,
        road=road,
        scenario=scenario.document(),
        summary=summary.metrics(),
        breakdown=summary.breakdown(),
        memory=memory,
        notes=(*_notes(model, road), *_fullest_note(ranks, fullest_rank)),
        operation_columns=columns,
        routing_columns=routing_columns(model, routed) if routed is not None else None,
        traffic=routed.traffic if routed is not None else None,
    )


def _fullest_note(ranks: tuple[dict[str, float], ...], rank: int) -> tuple[str, ...]:
    """Which pipeline rank's memory is told, and how the others compare."""
    if len(ranks) == 1:
        return ()
    least = min(sum(parts.values()) for parts in ranks)
    return (f"memory: pipeline rank {rank} of {len(ranks)} is the fullest; the emptiest needs {show(least, 'B')}",)


def require_memory(scenario: Scenario, parts: dict[str, float]) -> None:
    """Raises `InfeasibleError` where the fullest GPU needs far more than it has, naming the largest part and single
    changes each of which would make it fit."""
    need, have = sum(parts.values()), scenario.cluster.gpu.memory
    if verdict(need, have) != "infeasible":
        return
    name = max(parts, key=lambda part: parts[part])
    found = reliefs(scenario, parts)
    stages = scenario.parallelism.pipeline
    where = f" (pipeline rank {found.rank} of {stages})" if stages > 1 else ""
    raise InfeasibleError(
        f"{scenario.name}: does not fit in memory: the fullest GPU{where} needs {show(need, 'B')} of {show(have, 'B')}"
        f" (limit {coefficients()['infeasible']:.2f} x); binding: {name}, {show(parts[name], 'B')}; {_relaxed(found)}"
    )


def _relaxed(found: Reliefs) -> str:
    """What would make it fit, in words."""
    if found.fits:
        changes = " or ".join(f"{relief.change} (then {show(relief.need, 'B')})" for relief in found.fits)
        return f"it would relax with {changes}"
    if found.best is None:
        return "it would relax with GPUs of more memory; no other setting of this layout can change"
    best = f"{found.best.change} leaves {show(found.best.need, 'B')}"
    return f"no single change makes it fit: of those tried, {best}; it would relax with several at once, or more GPUs"


def _notes(model: StepModel, road: Road) -> tuple[str, ...]:
    scenario = model.scenario
    notes = []
    if scenario.model.is_moe and scenario.parallelism.expert > 1:
        notes.append(f"dispatcher {model.mover.dispatcher.name}: {model.mover.reason}")
        notes += model.mover.even.notes
        notes += network_notes(model, road)
        degraded = degraded_note(model.mover.network)
        notes += [degraded] if degraded else []
        if road == "simulate":
            groups = scenario.cluster.gpus // (scenario.parallelism.pipeline * scenario.parallelism.expert)
            groups //= scenario.parallelism.expert_tensor
            if groups > 1:
                notes.append(f"one of {groups} expert-parallel groups is simulated through all pipeline ranks")
    if scenario.cluster.calibration is not None:
        notes.append(f"coefficients of {scenario.cluster.calibration} go before the catalog's")
    notes.append(stack_note(scenario.stack, scenario.cluster.calibration))
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


def network_notes(model: StepModel, road: Road) -> list[str]:
    """Which network model answered, where it is not the busiest port."""
    wanted = model.scenario.simulation.network
    if wanted == "port-load":
        return []
    if wanted == "ideal":
        return ["network: ideal, every rank has its own links at full rate"]
    if road == "estimate":
        return ["network: the busiest port; flows that share links (max-min) are a matter of simulate"]
    return ["network: flows share links max-min fairly; gradients share ports with the last backward's exchanges"]
