"""The scenario: everything one run needs, every name resolved, every default filled in."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from moesim.routing.routers import router
from moesim.routing.routers.base import Router
from moesim.specs.base import Spec
from moesim.specs.cluster import ClusterSpec
from moesim.specs.model import ModelSpec, RouterSpec
from moesim.specs.parallelism import OverlapSpec, ParallelismSpec, ScheduleSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.workload import (
    DispatcherSpec,
    PlacementSpec,
    PrecisionSpec,
    PricesSpec,
    RecomputeModule,
    SimulationSpec,
    StackOptions,
    WorkloadSpec,
)

Recompute = Literal["none", "selective", "full"] | tuple[RecomputeModule, ...]
ResolvedSchedule = Literal["gpipe", "1f1b", "interleaved-1f1b", "zero-bubble-h1", "zero-bubble-v", "dualpipe"]


class Scenario(Spec):
    """One question with everything needed to answer it; `moesim.load` makes one from a file or a mapping."""

    name: str = Field(default="scenario", pattern=r"^[\w+][\w.+ -]{0,99}$")
    question: str = ""
    model: ModelSpec
    cluster: ClusterSpec
    parallelism: ParallelismSpec = ParallelismSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    workload: WorkloadSpec
    precision: PrecisionSpec = PrecisionSpec()
    routing: RoutingSpec
    placement: PlacementSpec = PlacementSpec()
    dispatcher: DispatcherSpec = DispatcherSpec()
    overlap: OverlapSpec = OverlapSpec()
    recompute: Recompute = "none"
    stack: str = "auto"
    stack_options: StackOptions = StackOptions()
    simulation: SimulationSpec = SimulationSpec()
    prices: PricesSpec = PricesSpec()

    @cached_property
    def data_parallel(self) -> int:
        """Replicas of the attention part: gpus / (tensor x pipeline x context)."""
        layout = self.parallelism
        return max(1, self.cluster.gpus // (layout.tensor * layout.pipeline * layout.context))

    @cached_property
    def expert_data_parallel(self) -> int:
        """Replicas of each expert: gpus / (expert x expert_tensor x pipeline)."""
        layout = self.parallelism
        return max(1, self.cluster.gpus // (layout.expert * layout.expert_tensor * layout.pipeline))

    @cached_property
    def microbatches(self) -> int:
        """Microbatches that one pipeline works through in a step."""
        return self.workload.global_batch // (self.data_parallel * self.workload.micro_batch)

    @cached_property
    def tokens_per_replica(self) -> int:
        """Tokens of one microbatch that one tensor-parallel group works on."""
        return self.workload.micro_batch * self.workload.sequence_length // self.parallelism.context

    @cached_property
    def tokens_per_rank(self) -> int:
        """Tokens of one microbatch that one GPU presents to the router: the sequence-parallel share."""
        return max(1, self.tokens_per_replica // self.parallelism.tensor)

    @cached_property
    def router(self) -> Router:
        """The router's rule, for a layer's experts; a dense layer is one expert that takes every token."""
        if not self.model.is_moe:
            return router(RouterSpec(), 1, 1)
        return router(self.model.router, self.model.n_experts, self.model.top_k)

    @cached_property
    def copies_per_group(self) -> float:
        """(token, expert) pairs of one microbatch that an expert-parallel group routes in one layer, on average."""
        layout = self.parallelism
        tokens = self.tokens_per_rank * layout.expert_tensor
        return layout.expert * self.router.copies(tokens, self.workload.micro_batch)

    @cached_property
    def expert_slots(self) -> int:
        """Experts of a layer that an expert-parallel group holds, redundant ones included."""
        return self.model.n_experts + self.placement.redundant_experts

    @cached_property
    def tokens_stood_for(self) -> int:
        """Tokens that each drawn token stands for."""
        tokens, drawn = self.tokens_per_rank * self.parallelism.expert_tensor, self.simulation.sampled_tokens
        return 1 if drawn is None else max(1, tokens // drawn)

    @cached_property
    def exchanges_tokens(self) -> bool:
        """Whether there are dispatches and combines that anything could run beside."""
        return self.model.is_moe and self.parallelism.expert > 1

    @cached_property
    def microbatch_parts(self) -> int:
        """Parts in which a microbatch is worked: two under two-batch overlap."""
        return 2 if self.overlap.two_batch and self.exchanges_tokens else 1

    @cached_property
    def shared_experts_apart(self) -> bool:
        """Whether what stands beside the routed experts runs beside their exchanges."""
        beside = self.model.shared_expert_width or self.model.dense_beside_experts
        return bool(self.overlap.shared_experts and self.exchanges_tokens and beside)

    @cached_property
    def tensor_parallel_overlap(self) -> bool:
        """Whether tensor-parallel collectives run beside products; two spellings, which the checks hold together."""
        stated = (self.overlap.tensor_parallel, self.stack_options.user_buffers)
        return all(said for said in stated if said is not None)

    @cached_property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch."""
        return self.workload.global_batch * self.workload.sequence_length

    @cached_property
    def schedule_kind(self) -> ResolvedSchedule:
        """The schedule with `auto` and `zero-bubble` resolved."""
        if self.schedule.kind == "zero-bubble":
            return "zero-bubble-h1"
        if self.schedule.kind != "auto":
            return self.schedule.kind
        return "interleaved-1f1b" if self.parallelism.virtual_pipeline > 1 else "1f1b"

    @cached_property
    def recomputed_modules(self) -> tuple[RecomputeModule, ...]:
        """Modules that run again in the backward; `selective` is core attention. Full recompute is not a module."""
        if isinstance(self.recompute, tuple):
            return self.recompute
        return ("core_attn",) if self.recompute == "selective" else ()

    @cached_property
    def chunks_per_rank(self) -> int:
        """Chunks that the layers are cut into for each pipeline rank: virtual_pipeline, or the two arms of a V."""
        return 2 if self.schedule_kind == "zero-bubble-v" else self.parallelism.virtual_pipeline

    @cached_property
    def virtual_stages(self) -> int:
        """Chunks that the layers are cut into: pipeline x chunks a rank."""
        return self.parallelism.pipeline * self.chunks_per_rank

    def document(self) -> dict[str, Any]:
        """Plain data with every default filled in, as `moesim show` prints it."""
        return self.model_dump(mode="json", exclude_none=False)

    @cached_property
    def key(self) -> str:
        """Content hash: the same for the same answer (name and question do not enter)."""
        text = self.model_dump_json(exclude={"name", "question"})
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
