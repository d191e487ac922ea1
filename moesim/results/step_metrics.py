"""Metrics of the step's time: throughput, communication, compute."""

from __future__ import annotations

from moesim.costs.compute import peak
from moesim.provenance import Basis, Quantity
from moesim.results.account import EXCHANGED, Account
from moesim.results.resampling import EXACT, Margin
from moesim.results.uncertainty import Uncertainty, ranged, within_share
from moesim.specs import parameters


def throughput(account: Account, uncertainty: Uncertainty) -> dict[str, Quantity]:
    """Step time, and what follows from it by arithmetic."""
    scenario, step = account.scenario, uncertainty.step
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


def communication(account: Account, uncertainty: Uncertainty) -> dict[str, Quantity]:
    """What moves between GPUs: seconds, hidden or not, and bytes."""
    busy, waited = account.observed.busy, account.observed.waited
    network, (collective, band) = account.bases["network"], uncertainty.collective
    data, tensor = _data_parallel(account), sum(account.collectives.values())
    exchange = sum(busy.get(kind, 0.0) for kind in EXCHANGED)
    exposed = sum(waited.get(kind, 0.0) for kind in (*EXCHANGED, "data-parallel")) + tensor
    widest, moved = max(uncertainty.exchange, band), _exchanged(account, uncertainty, EXCHANGED).times(exchange)

    def seconds(value: float, note: str, margin: Margin) -> Quantity:
        return ranged(value, "s", network, note, band=widest, margin=margin)

    fraction = ranged(
        exposed / account.step_seconds,
        "fraction",
        network,
        "exposed communication over step time",
        band=widest,
        margin=uncertainty.exposed_share(exposed),
    )
    found = {
        "communication_time": seconds(max(exchange + data + tensor, exposed), "expert, data, tensor parallel", moved),
        "exposed_communication_time": seconds(
            exposed, "waiting for slower ranks of the group included", uncertainty.exposed
        ),
        "communication_fraction": within_share(fraction),
        **_exchanges(account, uncertainty),
        "data_parallel_time": ranged(
            data, "s", collective, "gradient reduction and parameter gathering", band=band
        ),
    }  # fmt: skip
    if tensor:
        note = "tensor- and context-parallel collectives"
        found["tensor_parallel_time"] = ranged(tensor, "s", collective, note, band=band)
    return found


def compute(account: Account, uncertainty: Uncertainty) -> dict[str, Quantity]:
    """Seconds of the step by what computes, and of waiting for other pipeline ranks."""
    parts, basis = account.breakdown, account.bases["compute"]
    sampling = uncertainty.sampling
    dense = parts.get("dense layers", 0.0) + parts.get("embedding and head", 0.0)
    times = {
        "expert_compute_time": (parts.get("experts", 0.0), "mean rank; permutation and shared experts included"),
        "attention_time": (parts.get("attention", 0.0), "projections, scores, norms"),
        "dense_time": (dense, "dense layers, embedding, head"),
        "router_time": (parts.get("router", 0.0), "router projection, forward"),
        "optimizer_time": (parts.get("optimizer", 0.0), "update of the local shard"),
    }
    found = {
        name: ranged(
            value,
            "s",
            basis,
            note,
            band=uncertainty.part,
            margin=sampling.drawn.margin(sampling.computed) if sampling and name == "expert_compute_time" else EXACT,
        )
        for name, (value, note) in times.items()
        if value or name in ("attention_time", "optimizer_time")
    }
    return {**found, "pipeline_bubble_time": _bubble(account, uncertainty, basis)}


def _bubble(account: Account, uncertainty: Uncertainty, basis: Basis) -> Quantity:
    """It is as long as the slots are, so it misses with the whole step."""
    sampling, even = uncertainty.sampling, account.observed.even
    margin = EXACT if sampling is None else sampling.margin(sampling.step - sampling.own)
    note: str = account.scenario.schedule_kind
    if even is not None and even.bubble > 0 and account.scenario.parallelism.pipeline > 1:
        note += f"; {100 * even.bubble / even.seconds:.3g} % of the step at perfectly balanced routing"
    value = account.breakdown.get("pipeline bubble", 0.0)
    return ranged(value, "s", basis, note, band=uncertainty.laws, margin=margin)


def _data_parallel(account: Account) -> float:
    once, scenario = account.model.data_parallel, account.scenario
    times = scenario.microbatches * scenario.parallelism.virtual_pipeline
    sharded = sum(sum(rank.a_slot) for rank in once) * times / len(once)
    return sum(rank.reduce + rank.gather for rank in once) / len(once) + sharded


def _exchanges(account: Account, uncertainty: Uncertainty) -> dict[str, Quantity]:
    """Dispatch and combine, and the bytes they send."""
    work, mover = account.routed, account.model.mover
    if not account.exchanges or work is None:
        return {}
    found = {}
    for kind in EXCHANGED:
        value = account.observed.busy.get(kind, 0.0)
        margin = _exchanged(account, uncertainty, (kind,)).times(value)
        why = f"{mover.dispatcher.name}, {mover.network.ranks} ranks"
        network = account.bases["network"]
        found[f"{kind}_time"] = ranged(value, "s", network, why, band=uncertainty.exchange, margin=margin)
    calls = (account.forwards + 1.0) * account.uses * len(account.model.routed_passes)
    for tier, name in (("up", "scale_up"), ("out", "scale_out")):
        each = sum(getattr(getattr(work, kind), f"bytes_{tier}").mean(axis=-1) for kind in EXCHANGED)
        sent = calls * float(each.mean())
        margin = EXACT if uncertainty.sampling is None else uncertainty.sampling.share(each).times(sent)
        found[f"bytes_{name}_per_gpu"] = ranged(sent, "B", "derived", "mean over ranks", margin=margin)
    return found


def _exchanged(account: Account, uncertainty: Uncertainty, kinds: tuple[str, ...]) -> Margin:
    """Relative margin of the mean rank's exchanges."""
    work, sampling = account.routed, uncertainty.sampling
    if work is None or sampling is None:
        return EXACT
    return sampling.share(sum(getattr(work, kind).mean for kind in kinds))
