"""The serving scenario: a model, its engines, and the requests that come to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from moesim.routing.routers import router
from moesim.routing.routers.base import Router
from moesim.specs.base import Spec
from moesim.specs.cluster import ClusterSpec
from moesim.specs.model import ModelSpec, RouterSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.serving import (
    DisaggregatedSpec,
    EngineSpec,
    InstanceSpec,
    Phase,
    PoolSpec,
    ServingDispatcherSpec,
    ServingPrecision,
    ServingSimulationSpec,
    ServingWorkload,
)
from moesim.specs.workload import PlacementSpec, PricesSpec


@dataclass(frozen=True)
class Pool:
    """`count` engines that are alike and do the same `phase` of every request that comes to them."""

    phase: Phase
    instance: InstanceSpec
    count: int

    @property
    def gpus(self) -> int:
        """GPUs of all its engines."""
        return self.count * self.instance.gpus


class ServingScenario(Spec):
    """One question about serving; `moesim.load` makes one where `workload.kind` is prefill, decode or serving."""

    name: str = Field(default="scenario", pattern=r"^[\w+][\w.+ -]{0,99}$")
    question: str = ""
    model: ModelSpec
    cluster: ClusterSpec
    instance: InstanceSpec | None = None
    disaggregated: DisaggregatedSpec | None = None
    workload: ServingWorkload
    engine: EngineSpec = EngineSpec()
    precision: ServingPrecision = ServingPrecision()
    routing: RoutingSpec
    placement: PlacementSpec = PlacementSpec()
    dispatcher: ServingDispatcherSpec = ServingDispatcherSpec()
    stack: str = "auto"
    simulation: ServingSimulationSpec = ServingSimulationSpec()
    prices: PricesSpec = PricesSpec()

    @cached_property
    def pools(self) -> tuple[Pool, ...]:
        """The deployment's engines: one pool, or those for prefill and those for decode."""
        apart = self.disaggregated
        if apart is not None:
            return (
                Pool("prefill", _instance(apart.prefill), apart.prefill.instances),
                Pool("decode", _instance(apart.decode), apart.decode.instances),
            )
        instance = self.instance or InstanceSpec(gpus=self.cluster.gpus)
        phase: Phase = "mixed" if self.workload.kind == "serving" else self.workload.kind
        return (Pool(phase, instance, max(1, self.cluster.gpus // instance.gpus)),)

    @cached_property
    def gpus_used(self) -> int:
        """GPUs of all pools; the cluster's others stand idle and are paid for all the same."""
        return sum(pool.gpus for pool in self.pools)

    @cached_property
    def router(self) -> Router:
        """The router's rule, for a layer's experts; a dense layer is one expert that takes every token."""
        if not self.model.is_moe:
            return router(RouterSpec(), 1, 1)
        return router(self.model.router, self.model.n_experts, self.model.top_k)

    def document(self) -> dict[str, Any]:
        """Plain data with every default filled in, as `moesim show` prints it."""
        return self.model_dump(mode="json", exclude_none=False)

    @cached_property
    def key(self) -> str:
        """Content hash: the same for the same answer (name and question do not enter)."""
        text = self.model_dump_json(exclude={"name", "question"})
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _instance(pool: PoolSpec) -> InstanceSpec:
    return InstanceSpec(**pool.model_dump(exclude={"instances"}))
