"""From what a road observed to the metrics a planner reads, each with range, basis and note.

L MoE layers, S routing samples, R ranks of the expert-parallel group, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moesim.costs import money
from moesim.costs.compute import peak
from moesim.costs.memory import coefficients as memory_coefficients
from moesim.costs.memory import verdict
from moesim.errors import InternalError
from moesim.network.coefficients import law
from moesim.provenance import Basis, Quantity, worst
from moesim.results import reliability
from moesim.results.reliability import RunTime
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.step.draws import load_moments
from moesim.step.model import StepModel
from moesim.step.offload import expert_bytes
from moesim.step.operations import NOTHING_ASIDE
from moesim.step.routed import RoutedWork

EXCHANGED = ("dispatch", "combine")


def doubts(model: StepModel) -> list[str]:
    """Why this scenario's step time is less certain than the calibration's own rows; each widens the range."""
    scenario, prices = model.scenario, model.prices
    found = []
    for kind in sorted(set(scenario.model.layer_kinds)):
        stretch = prices.host_factor(kind) / prices.stack_factor
        if stretch > prices.data["host_bound"]:
            found.append(
                f"host-bound: issuing the kernels of a {kind} layer takes longer than the GPU needs (x {stretch:.1f});"
                " CUDA graphs or larger microbatches would relax it"
            )
    if model.overlaps and scenario.stack_options.cuda_graphs == "none":
        found.append("expert-communication overlap without CUDA graphs: host time is poorly known")
    if model.aside != NOTHING_ASIDE:
        found.append(
            "halves, shared experts or weight gradients beside exchanges: no published step to hold them against"
        )
    if scenario.parallelism.data_sharding == "full" and scenario.parallelism.expert > 1:
        found.append("full sharding with expert parallelism: how much of it hides is poorly known")
    if scenario.model.sliding_window and "linear" in scenario.model.note.lower():
        found.append("linear or state-space layers are priced as windowed attention")
    return found


@dataclass(frozen=True)
class Observed:
    """What a road found out about one step; seconds are means over GPUs.

    `seconds`: length of each step; `busy`: seconds that the compute or communication stream works by kind of
    operation; `waited`: seconds that the compute stream waits by reason ("dispatch", "combine", "bubble",
    "tensor-parallel", "data-parallel", "optimizer"); `even_seconds`: length of the step at perfectly balanced routing;
    `run`: the whole run where the scenario states failures.
    """

    seconds: tuple[float, ...]
    busy: Mapping[str, float]
    waited: Mapping[str, float]
    even_seconds: float | None = None
    run: RunTime | None = None


class Summary:
    """Builds the metrics of one scenario from what a road observed."""

    def __init__(
        self, model: StepModel, routed: RoutedWork | None, observed: Observed, memory: dict[str, float]
    ) -> None:
        self.model, self.routed, self.observed, self.memory = model, routed, observed, memory
        self.scenario: Scenario = model.scenario
        self.step_seconds = float(np.mean(observed.seconds))

    def metrics(self) -> dict[str, Quantity]:
        """Every metric that applies, in the order of `moesim.columns.SUMMARY`."""
        return {
            **self._throughput(),
            **self._communication(),
            **self._compute(),
            **self._routing(),
            **self._memory(),
            **self._size(),
            **self._reliability(),
            **self._money(),
        }

    def breakdown(self) -> dict[str, float]:
        """Where the step goes, seconds by part, mean over GPUs; the parts add up to the step."""
        busy, waited, inside = self.observed.busy, self.observed.waited, self._collectives
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
    def _collectives(self) -> dict[str, float]:
        """Seconds of tensor- and context-parallel collectives inside compute operations, by operation."""
        prices, scenario = self.model.prices, self.scenario
        moe = len(self.model.routed_passes)
        dense = scenario.model.layers + scenario.model.mtp_layers - moe
        share = scenario.microbatches / scenario.parallelism.pipeline
        forwards = 2.0 if self.model.recompute.everything else 1.0
        found = dict.fromkeys(("attention", "dense", "experts"), 0.0)
        for kind, layers in (("moe", moe), ("dense", dense)):
            if not layers:
                continue
            times = layers * share * prices.host_factor(kind)
            for name in ("attention", "dense") if kind == "dense" else ("attention",):
                phases = prices.tensor_parallel[name]
                found[name] += times * (forwards * phases.forward + phases.backward + phases.weight)
            if kind == "moe" and self.routed is not None:
                again = forwards + self.model.recompute.experts * (forwards == 1.0)
                forward, backward = prices.expert_collectives(float(self.routed.rows.mean()))
                found["experts"] += times * (again * float(forward) + float(backward))
        return found

    @cached_property
    def _bases(self) -> dict[str, Basis]:
        gpu = self.scenario.cluster.gpu
        compute = worst([self.model.prices.rates.basis, gpu.basis("bf16", "fp8", "memory_bandwidth")])
        return {"compute": compute, "network": self.model.mover.even.basis if self._exchanges else "derived"}

    @cached_property
    def _collective_trust(self) -> tuple[Basis, float]:
        """Basis and relative range of collectives: fitted on the GPUs and links of their fit, else assumed."""
        fitted, gpu = law("collectives"), self.scenario.cluster.gpu
        valid = fitted.valid
        inside = gpu.generation in valid.get("generations", [gpu.generation])
        inside = inside and gpu.scale_up_kind in valid.get("kinds", [gpu.scale_up_kind])
        return (fitted.basis, fitted.band) if inside else ("assumed", max(fitted.band, fitted.band_elsewhere))

    @property
    def _exchanges(self) -> bool:
        return self.scenario.model.is_moe and self.scenario.parallelism.expert > 1

    @cached_property
    def _step_band(self) -> float:
        """Relative range of the step time: that of whole steps under this calibration, and what exchanges and routing
        samples add to it by their share of the step."""
        parts, total = self.breakdown(), self.step_seconds
        exchange = parts.get("exposed dispatch", 0.0) + parts.get("exposed combine", 0.0)
        collective = parts.get("data parallel", 0.0) + parts.get("tensor and context parallel", 0.0)
        bands = (
            self.model.prices.rates.band * total,
            (self.model.mover.even.relative if self._exchanges else 0.0) * exchange,
            self._collective_trust[1] * collective,
            self._sampling_seconds,
        )
        relative = float(np.sqrt(np.sum(np.square(bands))) / total)
        return max(relative, self.model.prices.data["doubtful_band"]) if doubts(self.model) else relative

    @cached_property
    def _sampling_seconds(self) -> float:
        """Half width of the 90 % range that the finite number of routing samples (and steps) leaves, seconds a step."""
        spread = 0.0
        if self.routed is not None and self.routed.samples > 1:
            work = self.routed
            longest = (
                work.dispatch.busiest + work.combine.busiest + (work.forward + work.backward + work.weight).max(-1)
            )
            by_sample = longest.sum(axis=0)
            routed_share = min(
                1.0, float(by_sample.mean()) * self.scenario.microbatches / self._stages / self.step_seconds
            )
            relative = float(by_sample.std(ddof=1) / by_sample.mean()) / np.sqrt(work.samples)
            spread = 1.645 * relative * routed_share * self.step_seconds
        if len(self.observed.seconds) > 1:
            steps = np.asarray(self.observed.seconds)
            spread = max(spread, 1.645 * float(steps.std(ddof=1)) / np.sqrt(len(steps)))
        return spread

    @property
    def _stages(self) -> int:
        return self.scenario.parallelism.pipeline

    @cached_property
    def step(self) -> Quantity:
        """The step time."""
        basis = worst([*self._bases.values(), "assumed" if doubts(self.model) else "derived"])
        note = f"90 % of calibrated cases lie within +-{100 * self._step_band:.0f} %"
        return Quantity.within(self.step_seconds, "s", self._step_band, basis, note)

    def _throughput(self) -> dict[str, Quantity]:
        scenario, step = self.scenario, self.step
        tokens, gpus = float(scenario.tokens_per_step), scenario.cluster.gpus
        flops = parameters.flops_per_token(scenario.model, scenario.workload.sequence_length)
        rate = peak(scenario.cluster.gpu, scenario.precision.compute)
        model_flops = step.inverse(tokens * flops / gpus, "FLOP/s", "causal attention counted half, no recompute")
        return {
            "step_time": step,
            "tokens_per_second": step.inverse(tokens, "token/s", f"{tokens:,.0f} tokens a step"),
            "tokens_per_second_per_gpu": step.inverse(tokens / gpus, "token/s", f"{gpus:,} GPUs"),
            "model_flops_per_second_per_gpu": model_flops,
            "model_flops_utilization": model_flops.scaled(
                1 / rate, "fraction", f"of the {scenario.precision.compute} dense peak, {rate / 1e12:,.0f} TFLOP/s"
            ),
        }

    def _communication(self) -> dict[str, Quantity]:
        busy, waited = self.observed.busy, self.observed.waited
        network, (collective, band) = self._bases["network"], self._collective_trust
        exchange_band = self.model.mover.even.relative if self._exchanges else 0.0
        once = self.model.data_parallel
        chunks = self.scenario.parallelism.virtual_pipeline
        sharded = sum(sum(rank.a_slot) for rank in once) * self.scenario.microbatches * chunks / len(once)
        data = sum(rank.reduce + rank.gather for rank in once) / len(once) + sharded
        tensor = sum(self._collectives.values())
        exchange = sum(busy.get(kind, 0.0) for kind in EXCHANGED)
        exposed = sum(waited.get(kind, 0.0) for kind in (*EXCHANGED, "data-parallel")) + tensor
        fraction = exposed / self.step_seconds

        def seconds(value: float, relative: float, basis: Basis, note: str) -> Quantity:
            return Quantity.within(value, "s", relative, basis, note)

        found = {
            "communication_time": seconds(
                max(exchange + data + tensor, exposed),
                max(exchange_band, band),
                network,
                "expert, data, tensor parallel",
            ),
            "exposed_communication_time": seconds(
                exposed, max(exchange_band, band), network, "waiting for slower ranks of the group included"
            ),
            "communication_fraction": Quantity.within(
                fraction, "fraction", max(exchange_band, band), network, "exposed communication over step time"
            ),
        }
        if self._exchanges and self.routed is not None:
            why = f"{self.model.mover.dispatcher.name}, {self.model.mover.network.ranks} ranks"
            for kind in EXCHANGED:
                found[f"{kind}_time"] = seconds(busy.get(kind, 0.0), exchange_band, network, why)
            calls = self._calls
            for tier, name in (("up", "scale_up"), ("out", "scale_out")):
                sent = sum(
                    calls[kind] * float(getattr(getattr(self.routed, kind), f"bytes_{tier}").mean())
                    for kind in EXCHANGED
                )
                found[f"bytes_{name}_per_gpu"] = Quantity.exact(sent, "B", "mean over ranks", "derived")
        found["data_parallel_time"] = seconds(data, band, collective, "gradient reduction and parameter gathering")
        if tensor:
            found["tensor_parallel_time"] = seconds(
                tensor, band, collective, "tensor- and context-parallel collectives"
            )
        return found

    @property
    def _calls(self) -> dict[str, float]:
        """Dispatches and combines on one GPU in a step."""
        again = self.model.recompute.everything or self.model.recompute.experts
        layers = len(self.model.routed_passes)
        each = (3 if again else 2) * layers * self.scenario.microbatches / self._stages
        return dict.fromkeys(EXCHANGED, float(each))

    def _compute(self) -> dict[str, Quantity]:
        parts, band, basis = self.breakdown(), self.model.prices.rates.band, self._bases["compute"]
        dense = parts.get("dense layers", 0.0) + parts.get("embedding and head", 0.0)
        times = {
            "expert_compute_time": (parts.get("experts", 0.0), "mean rank; permutation and shared experts included"),
            "attention_time": (parts.get("attention", 0.0), "projections, scores, norms"),
            "dense_time": (dense, "dense layers, embedding, head"),
            "router_time": (parts.get("router", 0.0), "router projection, forward"),
            "pipeline_bubble_time": (parts.get("pipeline bubble", 0.0), self.scenario.schedule_kind),
            "optimizer_time": (parts.get("optimizer", 0.0), "update of the local shard"),
        }
        always = ("attention_time", "pipeline_bubble_time", "optimizer_time")
        return {
            name: Quantity.within(value, "s", band, basis, note)
            for name, (value, note) in times.items()
            if value or name in always
        }

    def _routing(self) -> dict[str, Quantity]:
        if self.routed is None:
            return {}
        work, profile = self.routed, self.scenario.routing.load
        basis = worst(["fitted", profile.basis(*profile.law)])
        why = f"load {profile.name}; mean over {work.rows.shape[0]} MoE layers x {work.samples} samples"

        def spread(values: np.ndarray) -> tuple[float, float, float]:
            return float(values.mean()), float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95))

        experts = work.expert_routed
        copies = experts.sum(axis=-1)
        load = np.maximum(work.rows.mean(axis=-1), 1e-12)
        found = {
            "dropped_token_fraction": (1 - work.expert_kept.sum(-1) / np.maximum(copies, 1), "fraction"),
            "expert_load_max_over_mean": (experts.max(-1) / np.maximum(experts.mean(-1), 1e-12), "ratio"),
            "expert_load_static_max_over_mean": (self._popularity_skew, "ratio"),
            "rank_load_max_over_mean": (work.rows.max(-1) / load, "ratio"),
            "idle_expert_fraction": ((experts == 0).mean(-1), "fraction"),
            "balancedness": (load / np.maximum(work.rows.max(-1), 1e-12), "ratio"),
        }
        metrics = {}
        for name, (values, unit) in found.items():
            value, low, high = spread(np.asarray(values, dtype=np.float64))
            metrics[name] = Quantity(value, unit, min(low, value), max(high, value), basis, f"{why}; range: 5-95 %")
        kept = work.expert_kept.sum()
        padding = float(1 - kept / work.rows.sum()) if work.rows.sum() > kept * (1 + 1e-9) else 0.0
        metrics["padded_token_fraction"] = Quantity.exact(padding, "fraction", "rows computed that hold padding", basis)
        metrics.update(self._cache())
        even = self.observed.even_seconds
        if even is not None:
            lost = self.step_seconds - even
            band = max(self._sampling_seconds, abs(lost) * self._step_band)
            why = "this step minus the same step at perfectly balanced routing"
            if metrics["dropped_token_fraction"].value > 0:
                why += "; dropped copies are work saved"
            metrics["skew_time"] = Quantity(lost, "s", lost - band, lost + band, basis, why)
        return metrics

    @cached_property
    def _popularity_skew(self) -> np.ndarray:
        """Busiest expert over the mean [L] by what a token wants on average."""
        chance = load_moments(self.model).chance
        return np.asarray(chance.max(axis=-1) / chance.mean(axis=-1))

    def _cache(self) -> dict[str, Quantity]:
        """What off-loaded experts mean for tokens that come one by one."""
        offload = self.scenario.placement.offload
        if self.routed is None or self.routed.held is None or offload is None:
            return {}
        hits = self.routed.held
        wanted = self.scenario.router.copies(1.0, 1.0) * len(self.model.moe_index)
        seconds = (1.0 - hits) * wanted * expert_bytes(self.model) / offload.host_bandwidth
        kept = f"{offload.resident} experts of each layer kept on each GPU, the {offload.keep} ones"
        return {
            "expert_cache_hit_fraction": Quantity.exact(hits, "fraction", kept, "assumed"),
            "expert_fetch_time_per_token": Quantity.exact(seconds, "s", "bf16 weights, no overlap", "assumed"),
        }

    def _memory(self) -> dict[str, Quantity]:
        need, have = sum(self.memory.values()), self.scenario.cluster.gpu.memory
        band = float(memory_coefficients()["band"])
        total = Quantity.within(need, "B", band, "fitted", "fullest GPU; parts in the memory table")
        said = {"fits": "fits", "tight": "tight: needs off-load or recompute", "infeasible": "does not fit"}
        ratio = total.scaled(1 / have, "ratio", f"{said[verdict(need, have)]}; the GPU has {have / 1e9:.1f} GB")
        return {"memory_per_gpu": total, "fits_in_memory": ratio}

    def _size(self) -> dict[str, Quantity]:
        model = self.scenario.model
        count = parameters.count(model)
        flops = parameters.flops_per_token(model, self.scenario.workload.sequence_length)
        return {
            "total_parameters": Quantity.exact(float(count.total), "parameter", "matrices, embedding and head"),
            "active_parameters": Quantity.exact(float(count.active), "parameter", "used by one token"),
            "flops_per_token": Quantity.exact(flops, "FLOP", "forward and backward, causal attention counted half"),
        }

    def _reliability(self) -> dict[str, Quantity]:
        run = self.observed.run
        return {} if run is None else reliability.metrics(run, self.scenario)

    def _money(self) -> dict[str, Quantity]:
        scenario, run = self.scenario, self.observed.run
        total = scenario.workload.total_tokens
        if total is None:
            return {}
        steps, prices, gpus = total / scenario.tokens_per_step, scenario.prices, scenario.cluster.gpus
        if run is None:
            time = self.step.scaled(steps, "s", f"{steps:,.0f} steps without failures")
        else:
            time = reliability.training_time(run, self.step)
        held = reliability.held_gpus(scenario)
        spare = f"; {held - gpus:,} GPUs standing by included" if held > gpus else ""
        hours = time.scaled(money.gpu_hours(held, 1.0), "GPU-h", f"{total:.3g} tokens{spare}")
        found = {"training_time": time, "gpu_hours": hours}
        watts = scenario.cluster.gpu.power
        joules = money.energy_joules(gpus, time.value, watts) if watts else None
        if joules is not None:
            note = "GPUs at their power rating, without hosts and cooling" + ("; without spares" if spare else "")
            found["energy"] = replace(time.scaled(joules / time.value, "J", note), basis="assumed")
        cost = money.dollars(hours.value, prices.gpu_hour, joules, prices.electricity)
        if cost is not None:
            found["cost"] = time.scaled(cost / time.value, "$", "by the scenario's prices")
        return found
