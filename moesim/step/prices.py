"""Prices of what every rank does alike: seconds of attention, router, dense layers, head, and per routed row.

The law: moesim.costs.compute. One microbatch, one GPU; forward, backward (input gradients) and weight gradients apart.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.costs import compute
from moesim.costs.tensor_split import attention_products, attention_widths, input_copies, key_value_copies
from moesim.network.collectives import all_gather, point_to_point, reduce_scatter
from moesim.network.topology import group, pair
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.specs.model import ModelSpec
from moesim.step.groups import crossing_share
from moesim.step.host import issue_seconds
from moesim.step.own_kernels import rates_of
from moesim.step.phases import NOTHING, Phases, RowPrice
from moesim.step.stack import time_factor

Floats = NDArray[np.float64]


class Prices:
    """Seconds of every operation that does not depend on routing, and the price of routed rows."""

    def __init__(self, scenario: Scenario, busy_multiprocessors: int, overlaps: bool) -> None:
        self.scenario, self.overlaps = scenario, overlaps
        self.model: ModelSpec = scenario.model
        measured = scenario.cluster.calibration
        self.rates = rates_of(scenario, busy_multiprocessors)
        self.data = compute.coefficients(measured)
        self.stack_factor = time_factor(scenario.stack, scenario.model.kernels, measured)
        self.tokens, self.parts = float(scenario.tokens_per_rank), scenario.microbatch_parts
        self.modules = scenario.recomputed_modules
        self._host_factors: dict[str, float] = {}

    def _products(self, flops: float, rate: float, again: bool = False) -> Phases:
        """Matrix products: one unit forward, one for input gradients, one for weight gradients."""
        seconds = compute.gemm_seconds(flops, rate)
        return Phases(seconds, seconds * (2 if again else 1), seconds)

    def _passes(self, elements: float, passes: float, again: float = 0.0) -> Phases:
        """Memory-bound work; `again`: the share of the forward that the backward repeats."""
        seconds = compute.passes_seconds(elements, passes, self.rates)
        backward = self.data["passes_backward"]
        return Phases(seconds, seconds * (backward["inputs"] + again), seconds * backward["weights"])

    @cached_property
    def attention(self) -> Phases:
        """One attention block without its collectives, mean over the model's layers."""
        model, rates = self.model, self.rates
        blocks, layout = model.attention_blocks, self.scenario.parallelism
        keys, inputs = int(key_value_copies(model, layout.tensor)), input_copies(layout)
        products = self._products(2 * self.tokens * blocks * attention_products(model, keys, inputs), rates.gemm)
        if "mla_up_proj" in self.modules and model.mla is not None:
            products = products._replace(backward=products.backward + self._up_projection())
        scores = self.scores
        score_backward = scores * (self.data["score_backward"] + ("core_attn" in self.modules))
        # Without sequence parallelism every rank norms and adds all tokens of its group.
        width = model.d_model * inputs + attention_widths(model, keys)
        again = self.data["recomputed_passes"]["layernorm"] * ("layernorm" in self.modules)
        memory = self._passes(self.tokens * blocks * width, self.data["attention_passes"], again)
        return products.plus(Phases(scores, score_backward, 0.0)).plus(memory)

    @cached_property
    def scores(self) -> float:
        """Forward seconds of attention scores and their product with values."""
        length = self.scenario.workload.sequence_length
        return self.tokens * parameters.score_flops_per_token(self.model, length) / self.rates.scores

    def _up_projection(self) -> float:
        latent = self.model.mla
        if latent is None:
            return 0.0
        wide = self.model.n_heads * (latent.qk_nope + latent.v_head) * latent.kv_lora_rank
        return compute.gemm_seconds(2 * self.tokens * wide, self.rates.gemm)

    @cached_property
    def router(self) -> Phases:
        """The router's projection, in bf16 or wider."""
        return self._products(2 * self.tokens * self.model.d_model * self.model.n_experts, self.rates.bf16_gemm)

    @cached_property
    def dense(self) -> Phases:
        """One dense feed-forward layer without its collectives."""
        work = 2 * self.tokens * parameters.dense_ffn_parameters(self.model)
        inputs = input_copies(self.scenario.parallelism)
        width = self.model.d_model * inputs + 2 * (self.model.d_ff_dense or 0)
        again = "mlp" in self.modules
        products = self._products(work, self.rates.gemm, again=again)
        return products.plus(self._passes(self.tokens * width, self.data["dense_passes"], float(again)))

    @cached_property
    def shared(self) -> Phases:
        """What stands beside the routed experts: shared experts, or a dense feed-forward layer."""
        wide = parameters.shared_expert_parameters(self.model)
        if self.model.dense_beside_experts:
            wide += parameters.dense_ffn_parameters(self.model)
        again = "shared_experts" in self.modules
        return self._products(2 * self.tokens * wide, self.rates.gemm, again=again)

    @cached_property
    def embedding(self) -> Phases:
        """The table look-up and its gradient."""
        return self._passes(self.tokens * self.model.d_model, 1.0) if self.model.vocab else NOTHING

    @cached_property
    def head(self) -> Phases:
        """One use of the output projection, bf16, with its share of the MTP modules' input projections."""
        model = self.model
        wide = model.vocab + 2 * model.d_model * model.mtp_layers / (1 + model.mtp_layers)
        return self._products(2 * self.tokens * model.d_model * wide, self.rates.bf16_gemm) if model.vocab else NOTHING

    @cached_property
    def row(self) -> RowPrice:
        """Price of routed rows on one rank (experts split over `expert_tensor` ranks)."""
        model, split = self.model, self.scenario.parallelism.expert_tensor
        passes = self.data["expert_passes"]
        compiled = self.scenario.cluster.gpu.generation in self.data["compiled"]
        if self.scenario.stack_options.fused_expert_mlp or compiled:
            passes *= self.data["fused_expert_passes"]
        elements = parameters.expert_parameters(model) / split
        memory = compute.passes_seconds(model.d_model + 2 * (model.d_ff_expert or 0) / split, passes, self.rates)
        return RowPrice(2 * elements, elements, memory + self.data["expert_row_seconds"])

    def experts(self, rows: Floats, active: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Forward, backward and weight seconds [...] of a rank's experts from rows of each local expert [..., E].

        `active` [..., E]: the probability that an expert has a row at all, where rows are expectations.
        """
        factor = self.host_factor("moe")
        forward, backward, weight = self._experts(rows, active)
        return forward * factor, backward * factor, weight * factor

    def _experts(self, rows: Floats, active: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """The same before the host and the stack stretch it."""
        price, passes, parts = self.row, self.data["passes_backward"], self.parts
        # Each part of a microbatch reads the weights of its experts.
        products = compute.experts_seconds(rows / parts, price.flops, price.weight_elements, self.rates, active)
        products = products * parts * self.rates.experts
        total = rows.sum(axis=-1)
        memory = self.rates.experts * total * price.memory_seconds
        collective = self._routed_collectives(total)
        shared = NOTHING if self.scenario.shared_experts_apart else self.shared_with_collectives
        again = self.data["recomputed_passes"]["moe_act"] * ("moe_act" in self.modules)
        forward = products + memory + shared.forward + collective
        backward = products + (passes["inputs"] + again) * memory + shared.backward + collective
        return forward, backward, products + passes["weights"] * memory + shared.weight

    def expert_collectives(self, total: Floats | float) -> tuple[Floats, Floats]:
        """Forward and backward seconds [...] of collectives of experts and of what stands beside them, which is tensor
        parallel, for `total` rows [...]."""
        beside, routed = self.collectives["experts"], self._routed_collectives(total)
        return routed + beside.forward, routed + beside.backward

    def _routed_collectives(self, total: Floats | float) -> Floats:
        """Seconds [...] of gathering and summing rows over the expert-tensor group, either way."""
        split, rows = self.scenario.parallelism.expert_tensor, np.asarray(total, dtype=np.float64)
        if split == 1:
            return np.zeros_like(rows)
        net = group(self.scenario.cluster, split)
        size = rows * 2.0 * self.model.d_model / self.parts
        return self.parts * np.asarray(all_gather(net, size / split) + reduce_scatter(net, size))

    @property
    def shared_with_collectives(self) -> Phases:
        """What stands beside the routed experts, its tensor-parallel collectives included."""
        return self.shared.plus(self.collectives["experts"])

    @cached_property
    def collectives(self) -> dict[str, Phases]:
        """`tensor_parallel` with the collectives of modules that run again."""
        again = {"dense": "mlp" in self.modules, "experts": "shared_experts" in self.modules}
        return {
            name: pair._replace(backward=pair.backward + pair.forward * again.get(name, False))
            for name, pair in self.tensor_parallel.items()
        }

    @cached_property
    def tensor_parallel(self) -> dict[str, Phases]:
        """Collectives of tensor and context parallelism by the operation that waits for them."""
        layout, data = self.scenario.parallelism, self.data["tensor_parallel"]
        one = 0.0
        if layout.tensor > 1:
            net = group(self.scenario.cluster, layout.tensor)
            block = 2.0 * self.scenario.tokens_per_replica * self.model.d_model / self.parts
            one = self.parts * (all_gather(net, block / layout.tensor) + reduce_scatter(net, block)) / 2
            one *= data["user_buffers"] if self.scenario.tensor_parallel_overlap else 1.0
        calls = data["collectives_a_block"]
        pair = Phases(calls * one, calls * one * data["backward"], 0.0)
        ring = self._context_ring()
        beside = parameters.shared_expert_parameters(self.model) or self.model.dense_beside_experts
        shared = pair if beside else NOTHING
        return {"attention": pair.plus(Phases(ring, 2 * ring, 0.0)), "dense": pair, "experts": shared}

    def _context_ring(self) -> float:
        """Exposed seconds of passing keys and values round the context-parallel ring, forward."""
        layout = self.scenario.parallelism
        if layout.context == 1:
            return 0.0
        net = group(self.scenario.cluster, layout.context, stride=layout.tensor)
        width = self.model.kv_width * int(key_value_copies(self.model, layout.tensor)) / layout.tensor
        block = 2.0 * self.scenario.tokens_per_replica * width / self.parts
        ring = self.parts * (layout.context - 1) * point_to_point(net, block)
        return float(max(0.0, ring - self.scores) + self.data["context_parallel_exposed"] * ring)

    def host_factor(self, kind: str) -> float:
        """How much a layer of this kind is stretched by a host slow to issue its kernels, and by the stack."""
        if kind not in self._host_factors:
            self._host_factors[kind] = self._host_factor(kind)
        return self._host_factors[kind]

    def _host_factor(self, kind: str) -> float:
        gpu = self._layer_seconds(kind)
        stretched = compute.smooth_max(gpu, self.issue_seconds(kind), self.data["host"]["exponent"])
        return float(stretched) / gpu * self.stack_factor if gpu else self.stack_factor

    def issue_seconds(self, kind: str) -> float:
        """Host seconds to issue the kernels of a layer of this kind, forward and backward."""
        return issue_seconds(self.scenario, kind, self.overlaps)

    def _layer_seconds(self, kind: str) -> float:
        """GPU seconds of one layer, forward and backward, at even load."""
        seconds = self.attention.total + self.collectives["attention"].total
        if kind != "moe":
            return seconds + self.dense.total + self.collectives["dense"].total
        apart = self.shared_with_collectives.total if self.scenario.shared_experts_apart else 0.0
        return seconds + self.router.total + apart + sum(float(part) for part in self._experts(self._even_rows))

    def local(self, kind: str, layer_kind: str) -> Phases:
        """Seconds of a routing-independent operation with its collectives, in a layer of the given kind."""
        if kind in ("embedding", "head"):
            return (self.embedding if kind == "embedding" else self.head).times(self.stack_factor)
        if kind == "shared":
            return self.shared_with_collectives.times(self.host_factor(layer_kind))
        own = {"attention": self.attention, "router": self.router, "dense": self.dense}[kind]
        return own.plus(self.collectives.get(kind, NOTHING)).times(self.host_factor(layer_kind))

    @cached_property
    def _alike(self) -> dict[tuple[str, str], Phases]:
        kinds = {"attention", "router", "embedding", "head", "dense"}
        layer_kinds: set[str] = set(self.model.layer_kinds)
        pairs = [(kind, layer) for kind in kinds for layer in layer_kinds if kind != "router" or layer == "moe"]
        pairs += [("shared", "moe")] * self.scenario.shared_experts_apart
        found = {pair: self.local(*pair) for pair in pairs}
        for layer_kind in layer_kinds & {"moe"}:
            # The router's backward has no operation of its own: it runs with the attention's.
            own, router = found["attention", layer_kind], found["router", layer_kind]
            found["attention", layer_kind] = own.plus(router._replace(forward=0.0))
        return found

    def seconds(self, kind: str, layer: int, phase: str, deferred: bool) -> float:
        """Seconds of an operation that all ranks do alike; a backward holds its weight gradients unless `deferred`."""
        phases = self._alike[kind, self.model.layer_kinds[layer]]
        if phase == "backward":
            return phases.backward if deferred else phases.backward + phases.weight
        return phases.weight if phase == "weight" else phases.forward

    def even(self, kind: str, layer_kind: str) -> Phases:
        """Seconds of any operation's compute at even load; exchanges take none."""
        if kind in ("dispatch", "combine"):
            return NOTHING
        return self._even_experts if kind == "experts" else self._alike[kind, layer_kind]

    @cached_property
    def _even_experts(self) -> Phases:
        return Phases(*(float(part) for part in self.experts(self._even_rows)))

    @cached_property
    def _even_rows(self) -> Floats:
        """Rows of each local expert at even load."""
        local_experts = self.scenario.expert_slots // self.scenario.parallelism.expert
        copies = self.scenario.copies_per_group / self.scenario.parallelism.expert
        return np.full(local_experts, copies / local_experts)

    @cached_property
    def hop(self) -> float:
        """Seconds to send a microbatch's activations to the neighbouring pipeline rank, mean over the boundaries.

        The mean, for fill and drain pass every boundary, and in steady state so does what the first rank waits for: a
        microbatch's way through all stages and back. The dearest boundary alone binds no schedule.
        """
        layout, cluster = self.scenario.parallelism, self.scenario.cluster
        if layout.pipeline == 1:
            return 0.0
        away, stage = crossing_share(self.scenario), cluster.gpus // layout.pipeline
        ways = [(share, pair(cluster, stage, crosses)) for crosses, share in ((False, 1 - away), (True, away)) if share]
        return sum(share * float(point_to_point(net, self.hop_bytes)) for share, net in ways) * self.stack_factor

    @cached_property
    def hop_bytes(self) -> float:
        """Bytes of that message."""
        return 2.0 * self.tokens * self.model.d_model
