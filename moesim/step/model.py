"""The step of a scenario, ready to be walked: layout, slots, prices, and once-a-step collectives.

Both roads start here and differ in what they do next: the engine runs every operation with arrays over ranks, the
estimate evaluates the schedule's critical path with each operation's busiest rank.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing.capacity import CapacityRule
from moesim.scenario.scenario import Scenario
from moesim.step.balance import pairs_slots
from moesim.step.data_parallel import (
    DataParallel,
    Held,
    data_parallel,
    exposed,
    exposed_by_chunk,
    gradient_networks,
    held_parameters,
)
from moesim.step.interference import Interference
from moesim.step.layout import Chunk, chunks, chunks_on
from moesim.step.mover import Mover, mover
from moesim.step.operations import Aside, Operation, Recompute, one_chain, slot_operations
from moesim.step.prices import Prices
from moesim.step.schedules import Order, Slot, order

Floats = NDArray[np.float64]


class SlotWork(NamedTuple):
    """What a slot does. `deferred`: its backward operations leave their weight gradients to others; `slowed`: how many
    times as long each operation takes while an exchange runs, None where none runs beside any."""

    operations: tuple[Operation, ...]
    deferred: bool
    slowed: list[float] | None


class StepModel:
    """What both roads share about one scenario; everything is computed on first use.

    `network`: the network model, the scenario's own unless stated.
    """

    def __init__(self, scenario: Scenario, network: str | None = None) -> None:
        self.scenario, self.network = scenario, network or scenario.simulation.network

    @cached_property
    def mover(self) -> Mover:
        """The dispatcher and the network of one expert-parallel group."""
        return mover(self.scenario, self.network)

    @cached_property
    def prices(self) -> Prices:
        """Routing-independent prices of operations alone; the dispatcher's SMs are lost where they are reserved."""
        reserved = self.hides and self.scenario.overlap.interference == "reserved"
        return Prices(self.scenario, self.mover.busy_multiprocessors if reserved else 0, self.overlaps)

    @cached_property
    def overlaps(self) -> bool:
        """Whether a forward runs beside a backward."""
        return pairs_slots(self.scenario)

    @cached_property
    def hides(self) -> bool:
        """Whether any compute runs beside exchanges."""
        return self.overlaps or (self.scenario.exchanges_tokens and self.aside != Aside())

    @cached_property
    def interference(self) -> Interference | None:
        """What exchanges take from the compute beside them; None where nothing runs beside, or it costs nothing."""
        if not self.hides or self.scenario.overlap.interference == "none":
            return None
        return Interference(self.prices, self.mover)

    @cached_property
    def aside(self) -> Aside:
        """What the slots run beside their own exchanges."""
        scenario, shared = self.scenario, None
        if scenario.shared_experts_apart:
            matrices = scenario.model.expert_matrices
            shared = ((matrices - 1) / matrices, 1 / matrices)
        delayed = scenario.overlap.weight_gradients == "delayed" and scenario.exchanges_tokens
        return Aside(scenario.microbatch_parts, shared, delayed)

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The virtual stages."""
        return chunks(self.scenario)

    @property
    def schedule(self) -> tuple[str, int, int, int, bool]:
        """What `schedules.order` wants: kind, pipeline ranks, chunks a rank, microbatches, whether slots are paired."""
        layout = self.scenario.parallelism
        chunks, batches = self.scenario.chunks_per_rank, self.scenario.microbatches
        return self.scenario.schedule_kind, layout.pipeline, chunks, batches, self.overlaps

    @cached_property
    def order(self) -> Order:
        """Slots of every pipeline rank."""
        return order(*self.schedule)

    @cached_property
    def recompute(self) -> Recompute:
        """Which forward operations run again."""
        chosen = self.scenario.recompute
        return Recompute(everything=chosen == "full", experts="moe" in self.scenario.recomputed_modules)

    def operations(self, slot: Slot) -> tuple[Operation, ...]:
        """The operations of one slot, in issue order."""
        return self.work(slot).operations

    def work(self, slot: Slot) -> SlotWork:
        """What one slot does; slots of the same chunks do the same."""
        name = tuple([-1 if work is None else work[0] for work in slot])
        found = self._works.get(name)
        if found is None:
            found = self._works[name] = self._work(slot)
        return found

    @cached_property
    def _works(self) -> dict[tuple[int, ...], SlotWork]:
        return {}

    def _work(self, slot: Slot) -> SlotWork:
        ahead = self.chunks[slot.forward.chunk] if slot.forward else None
        back = self.chunks[slot.backward.chunk] if slot.backward else None
        alone = slot.weight if slot.weight and not slot.backward else None
        owed = self.chunks[alone.chunk] if alone else None
        # A backward whose weight gradients have a slot of their own puts none of them off by itself.
        aside = self.aside if slot.weight is not None or back is None else replace(self.aside, weights=False)
        found = slot_operations(ahead, back, owed, self.scenario.model.layer_kinds, self.recompute, aside)
        deferred = slot.weight is None or self.aside.weights
        return SlotWork(found, deferred, self._slowed(found, deferred))

    def _slowed(self, operations: tuple[Operation, ...], deferred: bool) -> list[float] | None:
        interference = self.interference
        if interference is None or one_chain(operations):
            return None
        return [
            interference.factor(operation, deferred) if operation.stream == "compute" else 1.0
            for operation in operations
        ]

    @cached_property
    def chunk_make(self) -> tuple[tuple[object, ...], ...]:
        """What each chunk is made of, apart from where it stands."""
        kinds = self.scenario.model.layer_kinds
        return tuple(
            (tuple(kinds[layer] for layer in chunk.layers), chunk.embedding, chunk.head, chunk.mtp_layers)
            for chunk in self.chunks
        )

    @cached_property
    def held(self) -> tuple[Held, ...]:
        """Parameters on one GPU of each pipeline rank."""
        return tuple(
            held_parameters(self.scenario, self.chunks, device) for device in range(self.scenario.parallelism.pipeline)
        )

    @cached_property
    def data_parallel(self) -> tuple[DataParallel, ...]:
        """Once-a-step collectives and the update of each pipeline rank."""
        networks = gradient_networks(self.scenario)
        return tuple(
            data_parallel(self.scenario, self.held[device], len(chunks_on(self.scenario, device)), networks)
            for device in range(self.scenario.parallelism.pipeline)
        )

    @cached_property
    def compute_seconds(self) -> tuple[tuple[float, float], ...]:
        """Forward and backward seconds of one microbatch's compute on each pipeline rank, at even load.

        It is what a data-parallel collective can hide behind.
        """
        return tuple(self._compute_seconds(device) for device in range(self.scenario.parallelism.pipeline))

    def _compute_seconds(self, device: int) -> tuple[float, float]:
        forward = backward = 0.0
        for index in chunks_on(self.scenario, device):
            kinds, aside = self.scenario.model.layer_kinds, Aside(shared=self.aside.shared)
            for operation in slot_operations(self.chunks[index], None, None, kinds, Recompute(), aside):
                phases = self.prices.even(operation.kind, kinds[operation.layer])
                forward += operation.share * phases.forward
                backward += operation.share * (phases.backward + phases.weight)
        # A DualPipe rank holds two chunks, and a microbatch passes only one of them there.
        share = 0.5 if self.scenario.schedule_kind == "dualpipe" else 1.0
        return forward * share, backward * share

    def shard_wait(self, stage: int, slot: Slot) -> float:
        """Seconds for which the collectives that sharding repeats every slot outlast its compute."""
        once = self.data_parallel[stage]
        if not any(once.a_slot):
            return 0.0
        slots = self.scenario.chunks_per_rank
        ahead, back = (seconds / slots for seconds in self.compute_seconds[stage])
        wait = exposed(once.a_slot[0], ahead, once.exposed_share) if slot.forward else 0.0
        return wait + (exposed(once.a_slot[1], back, once.exposed_share) if slot.backward else 0.0)

    def gather_wait(self, stage: int) -> float:
        """Seconds for which a pipeline rank's first forward waits for parameters."""
        once = self.data_parallel[stage]
        return self._exposed(once.gather, self.compute_seconds[stage][0], once.exposed_share)

    def reduce_wait(self, stage: int, late: float = 0.0) -> float:
        """Seconds for which a pipeline rank waits for its gradients' sum after its last slot; `late`: those by which
        other traffic holds the reduction up."""
        once = self.data_parallel[stage]
        return self._exposed(once.reduce + late, self.compute_seconds[stage][1], once.exposed_share)

    def _exposed(self, duration: float, microbatch: float, share: float) -> float:
        """Only an interleaved schedule is done with some chunks of a rank long before the others."""
        scenario = self.scenario
        chunks = scenario.chunks_per_rank if scenario.schedule_kind == "interleaved-1f1b" else 1
        apart = min(scenario.parallelism.pipeline, scenario.microbatches)
        return exposed_by_chunk(duration, microbatch, chunks, apart, share)

    def message_wait(self, slot: Slot) -> float:
        """Seconds for which a slot's rank is held up by messages from its neighbours, however early they came."""
        scenario, last = self.scenario, self.scenario.virtual_stages - 1
        if scenario.parallelism.pipeline == 1:
            return 0.0
        share = self.prices.data["pipeline_exposed"] if scenario.overlap.pipeline else 1.0
        # At the turn of a V both chunks stand on one rank.
        turn = scenario.parallelism.pipeline if scenario.schedule_kind == "zero-bubble-v" else last + 1
        ahead = slot.forward is not None and slot.forward.chunk not in (0, turn)
        back = slot.backward is not None and slot.backward.chunk not in (last, turn - 1)
        return float(share * (ahead + back) * self.prices.hop)

    @cached_property
    def routed_passes(self) -> tuple[int, ...]:
        """The MoE layers that a microbatch passes, MTP modules counted as the last layer once more."""
        last = self.scenario.model.layers - 1
        return (*self.moe_index, *[last] * (self.scenario.model.mtp_layers if last in self.moe_index else 0))

    @cached_property
    def moe_index(self) -> dict[int, int]:
        """Position among the MoE layers of each MoE layer."""
        moe = [layer for layer, kind in enumerate(self.scenario.model.layer_kinds) if kind == "moe"]
        return {layer: position for position, layer in enumerate(moe)}

    @cached_property
    def capacity_rule(self) -> CapacityRule | None:
        """The capacity rule; None where routing is dropless."""
        spec = self.scenario.routing.capacity
        return None if spec == "dropless" else CapacityRule.of(spec)

    @cached_property
    def capacity_rows(self) -> float:
        """Rows that one expert, or each slot of a replicated one, accepts from the whole group in one microbatch."""
        rule, scenario = self.capacity_rule, self.scenario
        if rule is None:
            return float("inf")
        layout, spec = scenario.parallelism, scenario.model
        if rule.per_rank:
            tokens = scenario.tokens_per_rank * layout.expert_tensor * layout.expert
            return rule.factor * tokens * spec.top_k / scenario.expert_slots
        tokens = scenario.tokens_per_rank * layout.expert_tensor
        if rule.scope == "source-rank":
            return float(rule.capacity(tokens, spec.n_experts, spec.top_k) * layout.expert)
        return float(rule.capacity(tokens * layout.expert, spec.n_experts, spec.top_k))

    @cached_property
    def padded(self) -> bool:
        """Whether experts compute, and dispatchers move, their whole capacity whatever the routing."""
        spec = self.scenario.routing.capacity
        return spec != "dropless" and spec.pad

    def computed_rows(self, kept: NDArray[Any]) -> Floats:
        """Rows [..., E or slots] that are computed: those kept, or the whole capacity where it is padded."""
        if self.padded:
            return np.full(kept.shape, self.capacity_rows)
        return kept.astype(np.float64)
