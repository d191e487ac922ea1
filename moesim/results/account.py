"""The account of one step: where its seconds go, what of it moves tokens, and what its laws rest on.

L MoE layers.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.provenance import Basis, worst
from moesim.results.observed import Observed
from moesim.scenario.scenario import Scenario
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork

Floats = NDArray[np.float64]
EXCHANGED = ("dispatch", "combine")


class Account:
    """One scenario's step as a road observed it; what every metric starts from."""

    def __init__(self, model: StepModel, routed: RoutedWork | None, observed: Observed) -> None:
        self.model, self.routed, self.observed = model, routed, observed
        self.scenario: Scenario = model.scenario
        self.step_seconds = float(np.mean(observed.seconds))

    @property
    def exchanges(self) -> bool:
        """Whether tokens leave their rank at all."""
        return self.scenario.model.is_moe and self.scenario.parallelism.expert > 1

    @property
    def uses(self) -> float:
        """Microbatches over pipeline ranks: what a layer's seconds count for on the mean rank."""
        return self.scenario.microbatches / self.scenario.parallelism.pipeline

    @property
    def forwards(self) -> int:
        """How often a microbatch's routed work goes forward: again where it is recomputed."""
        return 2 if self.model.recompute.everything or self.model.recompute.experts else 1

    @cached_property
    def passes(self) -> Floats:
        """How often a microbatch passes each MoE layer [L]: MTP modules are the last one once more."""
        places = [self.model.moe_index[layer] for layer in self.model.routed_passes]
        return np.bincount(places, minlength=len(self.model.moe_index)).astype(np.float64)

    @cached_property
    def breakdown(self) -> dict[str, float]:
        """Where the step goes, seconds by part, mean over GPUs; the parts add up to the step."""
        busy, waited, inside = self.observed.busy, self.observed.waited, self.collectives
        parts = {
            "attention": busy.get("attention", 0.0) - inside["attention"],
            "router": busy.get("router", 0.0),
            "experts": busy.get("experts", 0.0) + busy.get("shared", 0.0) - inside["experts"],
            "dense layers": busy.get("dense", 0.0) - inside["dense"],
            "embedding and head": busy.get("embedding", 0.0) + busy.get("head", 0.0),
            "tensor and context parallel": sum(inside.values()) + waited.get("tensor-parallel", 0.0),
            "exposed dispatch": waited.get("dispatch", 0.0),
            "exposed combine": waited.get("combine", 0.0),
            "data parallel": waited.get("data-parallel", 0.0),
            "optimizer": waited.get("optimizer", 0.0),
            "pipeline bubble": waited.get("bubble", 0.0),
        }
        if min(parts.values()) < -1e-6 * self.step_seconds:
            raise InternalError(f"breakdown: a part is negative: {parts}")
        return {name: seconds for name, seconds in parts.items() if seconds > 1e-9 * self.step_seconds}

    @cached_property
    def collectives(self) -> dict[str, float]:
        """Seconds of tensor- and context-parallel collectives inside compute operations, by operation."""
        prices, scenario = self.model.prices, self.scenario
        moe = len(self.model.routed_passes)
        dense = scenario.model.layers + scenario.model.mtp_layers - moe
        forwards = 2.0 if self.model.recompute.everything else 1.0
        found = dict.fromkeys(("attention", "dense", "experts"), 0.0)
        for kind, layers in (("moe", moe), ("dense", dense)):
            if not layers:
                continue
            times = layers * self.uses * prices.host_factor(kind)
            for name in ("attention", "dense") if kind == "dense" else ("attention",):
                phases = prices.collectives[name]
                found[name] += times * (forwards * phases.forward + phases.backward + phases.weight)
            if kind == "moe" and self.routed is not None:
                forward, backward = prices.expert_collectives(float(self.routed.rows.mean()))
                found["experts"] += times * (self.forwards * float(forward) + float(backward))
        return found

    @cached_property
    def bases(self) -> dict[str, Basis]:
        """What compute and exchanges rest on."""
        gpu = self.scenario.cluster.gpu
        compute = worst([self.model.prices.rates.basis, gpu.basis("bf16", "fp8", "memory_bandwidth")])
        return {"compute": compute, "network": self.model.mover.even.basis if self.exchanges else "derived"}
