"""Puts a run's answer together: metrics, breakdown, memory, notes; refuses what does not fit in memory."""

from __future__ import annotations

import numpy as np

from moesim.costs.memory import verdict
from moesim.costs.tensor_split import key_value_copies
from moesim.errors import InfeasibleError, InternalError
from moesim.network.topology import degraded_note
from moesim.results.memory_verdict import judge
from moesim.results.observed import Observed
from moesim.results.overlap_cost import overlap_note
from moesim.results.result import Columns, Result, Road
from moesim.results.summary import Summary, doubts
from moesim.scenario.overlap_checks import idle_switches
from moesim.scenario.scenario import Scenario
from moesim.step.draws import load_notes
from moesim.step.groups import straddling_note
from moesim.step.layout import layout_note
from moesim.step.memory import fullest, memory_by_rank
from moesim.step.model import StepModel
from moesim.step.placed import placement, placement_notes
from moesim.step.routed import RoutedWork, SlotCounts
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
        notes=(
            *_notes(model, road),
            *overlap_note(model, routed, observed, road),
            *_memory_notes(scenario, ranks, fullest_rank),
            *summary.notes(),
        ),
        operation_columns=columns,
        routing_columns=routing_columns(model, routed) if routed is not None else None,
        traffic=routed.traffic if routed is not None else None,
    )


def _memory_notes(scenario: Scenario, ranks: tuple[dict[str, float], ...], rank: int) -> tuple[str, ...]:
    """Which pipeline rank's memory is told, how the others compare, and whether it is tight."""
    notes = []
    if len(ranks) > 1:
        least = min(sum(parts.values()) for parts in ranks)
        notes.append(
            f"memory: pipeline rank {rank} of {len(ranks)} is the fullest; the emptiest needs {show(least, 'B')}"
        )
    judged = judge(scenario, ranks[rank], rank)
    if judged.verdict == "tight":
        notes.append(f"{judged.sentence()}; `moesim check` says what would relax it")
    return tuple(notes)


def require_memory(scenario: Scenario, parts: dict[str, float]) -> None:
    """Raises `InfeasibleError` where the fullest GPU needs far more than it has, naming the largest part and single
    changes each of which would make it fit."""
    if verdict(sum(parts.values()), scenario.cluster.gpu.memory) == "infeasible":
        raise InfeasibleError(f"{scenario.name}: {judge(scenario, parts).sentence()}")


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
                slow = [one.gpu for one in scenario.simulation.stragglers or () if one.gpu is not None]
                whose = f", that of GPU {slow[0]}" if slow else ""
                notes.append(f"one of {groups} expert-parallel groups is simulated through all pipeline ranks{whose}")
    straddling = straddling_note(scenario)
    notes += [straddling] if straddling else []
    if scenario.cluster.calibration is not None:
        notes.append(f"coefficients of {scenario.cluster.calibration} go before the catalog's")
    notes.append(stack_note(scenario.stack, scenario.cluster.calibration))
    notes += filter(None, [layout_note(scenario, model.chunks)])
    notes += doubts(model)
    notes += [*idle_switches(scenario), *_copies_note(scenario)]
    disturbed = scenario.simulation.jitter or scenario.simulation.stragglers
    if road == "estimate" and disturbed:
        notes.append("jitter and stragglers are not in the closed form: simulate")
    if scenario.stack_options.offload_layers:
        notes.append("off-loading is assumed to hide behind compute: its transfers are not priced")
    notes += load_notes(model)
    notes += placement_notes(model)
    if scenario.routing.load.note and scenario.model.is_moe:
        notes.append(f"load {scenario.routing.load.name}: {scenario.routing.load.note}")
    return tuple(dict.fromkeys(notes))


def _copies_note(scenario: Scenario) -> tuple[str, ...]:
    """Key-value heads that several tensor-parallel ranks hold."""
    tensor, heads = scenario.parallelism.tensor, scenario.model.kv_heads
    copies = int(key_value_copies(scenario.model, tensor))
    if copies == 1:
        return ()
    return (f"tensor {tensor} is above the {heads} key-value heads: {copies} ranks hold and compute the same one",)


def routing_columns(model: StepModel, routed: RoutedWork) -> Columns:
    """Columns of `moesim.columns.ROUTING`: one row a (layer, sample, expert), or a slot where some have several."""
    if routed.slots is not None:
        return _slot_columns(model, routed.slots)
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


def _slot_columns(model: StepModel, slots: SlotCounts) -> Columns:
    held = placement(model)
    if held is None:
        raise InternalError("slots without a placement")
    layers, samples, count = slots.kept.shape
    moe = np.array(sorted(model.moe_index), dtype=np.int32)
    rank = np.repeat(np.arange(held.placement.ranks, dtype=np.int32), held.placement.slots)
    expert = np.repeat(held.placement.physical.astype(np.int32)[:, None, :], samples, axis=1)
    return {
        "layer": np.repeat(moe, samples * count),
        "sample": np.tile(np.repeat(np.arange(samples, dtype=np.int32), count), layers),
        "expert": expert.ravel(),
        "rank": np.tile(rank, layers * samples),
        "tokens": slots.routed.ravel().astype(np.int64),
        "kept": slots.kept.ravel().astype(np.int64),
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
