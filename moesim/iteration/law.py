"""How long one engine iteration takes, on the busiest rank, and what the engine can hold.

What depends on the number of tokens alone (projections, experts, communication, head) is priced once on a grid of token
counts and interpolated; attention over the KV cache is priced as it is. A pipeline works on as many equal parts of the
batch as it has stages, so an iteration is one part's way through all stages. B iterations, G grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.iteration import memory, scores
from moesim.iteration.batch import Batch as Batch
from moesim.iteration.dense import Dense
from moesim.iteration.exchange import Exchange, Work, transfer_seconds
from moesim.iteration.experts import experts_seconds, router_seconds
from moesim.iteration.host import Host
from moesim.iteration.offload import ExpertFetch, Missing, resident_experts
from moesim.iteration.routed import Peaks, RoutedLoad
from moesim.iteration.stack import time_factor
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec, Phase

Floats = NDArray[np.float64]
_GRID = np.unique(np.concatenate([np.arange(1.0, 17.0), np.geomspace(16.0, 1 << 18, 72).round()]))
_COARSE = np.unique(np.geomspace(1.0, 1 << 18, 28).round())
PARTS = ("attention", "scores", "dense", "router", "experts", "expert_fetch", "dispatch", "combine", "tensor_parallel",
         "pipeline", "head", "draft", "host")  # fmt: skip
_COMMUNICATION = ("dispatch", "combine")
_BESIDE = ("attention", "scores", "dense", "router", "dispatch", "combine", "tensor_parallel")


class IterationLaw:
    """The law of the iterations of one `instance` that does `phase` of the scenario's requests."""

    def __init__(self, scenario: ServingScenario, instance: InstanceSpec, phase: Phase) -> None:
        self.scenario, self.instance, self.phase = scenario, instance, phase
        self.exchange = Exchange(scenario, instance)
        self._dense, self._host = Dense(scenario, instance.tensor), Host(scenario, instance)
        self._factor = time_factor(scenario.stack, scenario.cluster.calibration)
        self.tables: dict[tuple[str, str], Floats] = {}

    def with_factor(self, factor: float) -> IterationLaw:
        """The same law where kernels take `factor` times as long as alone, whatever the stack says."""
        found = copy(self)
        found._factor = factor
        return found

    def seconds(self, batch: Batch, imbalance: Floats | None = None, missing: Missing | None = None) -> Floats:
        """Length [B] of each iteration, on the busiest rank; `imbalance` [B]: max/mean of the rows over expert-parallel
        ranks, `missing`: experts to fetch from host memory, both the expected ones unless stated. An empty batch takes
        no time."""
        return np.asarray(sum(self.parts(batch, imbalance, missing).values()))

    def parts(self, batch: Batch, imbalance: Floats | None = None, missing: Missing | None = None) -> dict[str, Floats]:
        """The same by part; exchanges are what two-batch overlap leaves of them, and fetching experts what layers wait
        for. They add up to `seconds`."""
        stages, replicas, engine = self.instance.pipeline, self.instance.replicas, self.scenario.engine
        new, pairs, requests, context = mean = _split(batch, stages * replicas)
        if batch.busiest is not None:
            new, pairs, requests, context = _split(batch.busiest, stages)
        positions = requests * (1 + engine.drafted)
        # A replica without a whole token waits for one that has it.
        count, even = np.maximum(new + positions, 1.0), np.maximum(mean[0] + mean[2] * (1 + engine.drafted), 1.0)
        busy, works = new + positions > 0, new > 0
        peak = np.ones_like(even) if imbalance is None else np.asarray(imbalance) / self._expected_peak(even, works)
        found = self._layers(count, even, peak, works)
        found["scores"] = scores.prefill_seconds(self.scenario, self.instance.tensor, new, pairs)
        found["scores"] = found["scores"] + scores.decode_seconds(
            self.scenario, self.instance.tensor, requests, context, 1 + engine.drafted
        )
        found["head"] = self._at("head", np.maximum(positions + np.minimum(new, 1.0), 1.0), False)
        found["draft"] = self._draft(requests, context)
        found = {name: np.where(busy, self._factor * value, 0.0) for name, value in found.items()}
        if self.fetch is not None:
            wait = self._waits(self.fetch, found, even * replicas, works, missing)
            found["expert_fetch"] = np.where(busy, wait, 0.0)
        kernels = sum(found.values())
        together = np.asarray(
            sum(np.asarray(value, np.float64) for value in (batch.decode_requests, batch.prefill_tokens > 0))
        )
        found["host"] = np.where(busy, self._host.seconds(np.asarray(kernels), together, works), 0.0)
        return {name: found[name] for name in PARTS if name in found}

    def peaks(self, tokens: Floats, prompts: bool = False) -> Peaks:
        """Expected max/mean rows over expert-parallel ranks and over experts of iterations of `tokens` [B] of the whole
        instance; ones where the model has no experts."""
        tokens = np.asarray(tokens, np.float64)
        if not self.scenario.model.is_moe:
            return Peaks(np.ones_like(tokens), np.ones_like(tokens))
        whole = np.maximum(tokens, 1.0)
        return self.load.peaks(whole, self._sequences(whole, prompts))

    @cached_property
    def load(self) -> RoutedLoad:
        """What the experts of the instance are expected to get."""
        return RoutedLoad(self.scenario, self.instance, self.exchange.experts_network.ranks_per_domain)

    @cached_property
    def fetch(self) -> ExpertFetch | None:
        """What its GPUs fetch from host memory; None where they hold all of their experts."""
        kept = resident_experts(self.scenario, self.instance)
        return None if kept is None else ExpertFetch(self.load, self.instance, self._prompt)

    def expected_missing(self, batch: Batch) -> Missing | None:
        """Experts that iterations are expected to want, and not to find; None where a GPU holds all of its own."""
        if self.fetch is None:
            return None
        tokens = batch.prefill_tokens + batch.decode_requests * (1 + self.scenario.engine.drafted)
        each = np.maximum(np.atleast_1d(tokens) / self.instance.pipeline, 1.0)
        return self.fetch.expected(each, np.atleast_1d(batch.prefill_tokens) > 0)

    @cached_property
    def weights_bytes_per_gpu(self) -> float:
        """Bytes of weights on the fullest GPU."""
        return sum(memory.weights(self.scenario, self.instance).values())

    @cached_property
    def memory_parts(self) -> dict[str, float]:
        """Bytes of the fullest GPU by part; the KV cache is what the engine gives it."""
        found = {**memory.weights(self.scenario, self.instance), **memory.buffers(self.scenario, self.instance)}
        return {**found, "kv_cache": self.kv_capacity_tokens * self.kv_bytes_per_token / self.instance.gpus}

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Bytes of a token in the KV cache, on all GPUs of the instance together."""
        return memory.kv_bytes_per_token(self.scenario, self.instance, self.mean_context)

    @cached_property
    def mean_context(self) -> float:
        """Tokens of a request half way through its output."""
        work = self.scenario.workload
        prompt = work.input_tokens.average if work.input_tokens else float(_SEQUENCE)
        return prompt + (work.output_tokens.average / 2 if work.output_tokens else 0.0)

    @cached_property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the KV cache of the instance holds: what weights and buffers leave of memory x fraction; 0 where
        they leave nothing."""
        gpu, engine = self.scenario.cluster.gpu, self.scenario.engine
        taken = self.weights_bytes_per_gpu + sum(memory.buffers(self.scenario, self.instance).values())
        free = gpu.memory * engine.kv_cache_fraction - taken
        return max(0, int(free * self.instance.gpus / self.kv_bytes_per_token))

    def kv_transfer_seconds(self, tokens: Floats | float) -> Floats:
        """Seconds until the KV cache of a prompt of so many tokens is on another instance."""
        each = memory.distinct_kv_bytes(self.scenario, self.instance, self.mean_context)
        return transfer_seconds(self.scenario, self.instance, np.asarray(tokens, np.float64) * each)

    def _layers(self, tokens: Floats, even: Floats, peak: Floats, prompts: NDArray[np.bool_]) -> dict[str, Floats]:
        """Seconds [B] by part of all layers, for `tokens` of the busiest replica and `even` of the mean one, rows
        `peak` times the expected. The busiest sender is the busiest replica, the busiest receiver that of the rows."""
        model = self.scenario.model
        routed = model.moe_layers if model.is_moe else 0
        halves = 2.0 if self.scenario.engine.two_batch_overlap and self.exchange.exchanges else 1.0
        each, rows = np.maximum(tokens / halves, 1.0), np.maximum(even / halves, 1.0) * peak
        moved = np.maximum(each, rows)

        def at(name: str, count: Floats = each) -> Floats:
            return halves * self._at(name, count, prompts)

        found = {"attention": model.layers * at("attention"), "dense": (model.layers - routed) * at("dense")}
        found["tensor_parallel"] = at("tensor_parallel")
        found["pipeline"] = self._at("pipeline", tokens, prompts)
        if routed:
            found["dense"] = found["dense"] + routed * at("beside")
            found["router"], found["experts"] = routed * at("router"), routed * at("experts", rows)
            found["dispatch"], found["combine"] = (routed * at(way, moved) for way in _COMMUNICATION)
        return self._overlapped(found) if halves > 1 else found

    def _waits(
        self,
        fetch: ExpertFetch,
        found: dict[str, Floats],
        tokens: Floats,
        prompts: NDArray[np.bool_],
        missing: Missing | None,
    ) -> Floats:
        """Seconds [B] that the layers wait for experts of `tokens` of an iteration, whose compute is `found`."""
        beside = sum((found[name] for name in _BESIDE if name in found), np.zeros_like(tokens))
        there = fetch.expected(tokens, np.broadcast_to(prompts, tokens.shape)) if missing is None else missing
        return fetch.waits(beside, found["experts"], tokens, there)

    def _overlapped(self, found: dict[str, Floats]) -> dict[str, Floats]:
        """Exchanges of one half run beside the compute of the other: what is longer stays."""
        moved = found["dispatch"] + found["combine"]
        compute = sum(value for name, value in found.items() if name not in (*_COMMUNICATION, "pipeline"))
        left = np.maximum(moved - np.asarray(compute), 0.0) / np.maximum(moved, 1e-30)
        return {name: value * left if name in _COMMUNICATION else value for name, value in found.items()}

    def _draft(self, requests: Floats, context: Floats) -> Floats:
        """Drafting tokens of the decoding requests: for each, a layer of the model's MTP module and a head; without
        one the stated share of an iteration that decodes one token each."""
        model, engine = self.scenario.model, self.scenario.engine
        count, none = np.maximum(requests, 1.0), np.zeros(len(requests), np.bool_)
        if model.mtp_layers:
            layer = ("attention", "router", "experts", *_COMMUNICATION, "beside")
            one = sum((self._at(name, count, False) for name in layer), self._at("head", count, False))
        elif engine.draft_cost:
            parts = self._layers(count, count, np.ones_like(count), none)
            one = sum(parts.values(), self._at("head", count, False))
            one = one + scores.decode_seconds(self.scenario, self.instance.tensor, requests, context, 1)
            one = engine.draft_cost * one
        else:
            return np.zeros_like(requests)
        return np.where(requests > 0, engine.drafted * one, 0.0)

    def _expected_peak(self, tokens: Floats, prompts: NDArray[np.bool_]) -> Floats:
        return self._at("peak", tokens, prompts)

    def _at(self, name: str, tokens: Floats, prompts: NDArray[np.bool_] | bool) -> Floats:
        """A part of one layer at `tokens` of a replica, as prompts and as decoding requests have it."""
        decode = np.interp(tokens, *self._table(name, "decode"))
        if not np.any(prompts):
            return decode
        return np.where(prompts, np.interp(tokens, *self._table(name, "prefill")), decode)

    def _table(self, name: str, work: Work) -> tuple[Floats, Floats]:
        grid = _COARSE if name in _COMMUNICATION else _GRID
        if (name, work) not in self.tables:
            for key, value in zip(*self._priced(name, work, grid), strict=True):
                self.tables[key, work] = value
        return grid, self.tables[name, work]

    def _priced(self, name: str, work: Work, grid: Floats) -> tuple[tuple[str, ...], tuple[Floats, ...]]:
        """Tables [G] that are made together with `name`."""
        if name in _COMMUNICATION:
            there, back = self.exchange.exchange(work, grid)
            gathered = self.exchange.gathered(grid)
            return _COMMUNICATION, (there + gathered[0], back + gathered[1])
        laws: dict[str, Callable[[Floats], Floats]] = {
            "attention": self._dense.attention,
            "dense": self._dense.dense_layer,
            "beside": self._dense.beside_experts,
            "head": self._dense.head,
            "router": lambda tokens: self._norm(tokens) + router_seconds(self.scenario, tokens),
            "experts": lambda tokens: self._experts(tokens, work),
            "peak": lambda tokens: self.peaks(tokens * self.instance.replicas, work == "prefill").rank,
            "tensor_parallel": self._sums,
            "pipeline": lambda tokens: self.instance.pipeline * self.exchange.hop(tokens),
        }
        return (name,), (laws[name](grid),)

    def _norm(self, tokens: Floats) -> Floats:
        return self._dense.memory_pass("norm", tokens * self.scenario.model.d_model)

    def _experts(self, tokens: Floats, work: Work) -> Floats:
        whole = tokens * self.instance.replicas
        return experts_seconds(self.load, self.instance, whole, self._sequences(whole, work == "prefill"))

    def _sequences(self, tokens: Floats, prompts: bool) -> Floats:
        """How many sequences so many tokens belong to: prompts bring many each, decoding requests one."""
        return np.maximum(tokens / self._prompt, 1.0) if prompts else tokens

    @cached_property
    def _prompt(self) -> float:
        work = self.scenario.workload
        return max(1.0, work.input_tokens.average if work.input_tokens else float(_SEQUENCE))

    def _sums(self, tokens: Floats) -> Floats:
        """Tensor-parallel sums of all layers: one behind attention, one behind the feed-forward part, where the partial
        sums of experts are added too unless they came back from other ranks."""
        model, tensor = self.scenario.model, self.instance.tensor
        routed = model.moe_layers if model.is_moe else 0
        one = self.exchange.all_reduce(tokens, tensor)
        ends = model.layers - routed
        if self.exchange.apart:
            ends += routed if model.shared_expert_width or model.dense_beside_experts else 0
            return (model.layers + ends) * one
        return (model.layers + ends) * one + routed * self.exchange.all_reduce(tokens, self.instance.stage_gpus)


def _split(batch: Batch, parts: int) -> tuple[Floats, Floats, Floats, Floats]:
    """What one of so many equal parts has of a batch."""
    fields = (batch.prefill_tokens, batch.prefill_context, batch.decode_requests, batch.decode_context)
    first, second, third, fourth = (np.asarray(value, np.float64) / parts for value in np.broadcast_arrays(*fields))
    return first, second, third, fourth


_SEQUENCE = 1024
