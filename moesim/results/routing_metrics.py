"""Metrics of routing: how uneven the load is, what is dropped or padded, what a cache of experts does.

A range says how far the mean over a run may be from the mean of the samples drawn; how far single layers and samples
are apart stands in the note. L MoE layers, S routing samples, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.provenance import Basis, Quantity, worst
from moesim.results.account import Account
from moesim.results.resampling import EXACT
from moesim.results.uncertainty import Uncertainty, ranged, within_share
from moesim.step.draws import load_moments
from moesim.step.offload import expert_bytes
from moesim.step.routed import RoutedWork
from moesim.units import show

Floats = NDArray[np.float64]
APART = (0.05, 0.95)


def routing(account: Account, uncertainty: Uncertainty) -> dict[str, Quantity]:
    """Every routing metric; none for a dense model."""
    work, profile = account.routed, account.scenario.routing.load
    if work is None:
        return {}
    basis = worst(["fitted", profile.basis(*profile.law)])
    sampling = uncertainty.sampling
    metrics = {}
    for name, (values, unit) in _by_sample(work).items():
        margin = EXACT if sampling is None else sampling.mean(values)
        found = ranged(float(values.mean()), unit, basis, _why(account, work, values, unit), margin=margin)
        metrics[name] = within_share(found) if unit == "fraction" else found
    metrics["expert_load_static_max_over_mean"] = _popularity_skew(account, basis)
    metrics["padded_token_fraction"] = _padded(uncertainty, work, basis)
    return {**metrics, **_cache(account, work)}


def _by_sample(work: RoutedWork) -> dict[str, tuple[Floats, str]]:
    """The metrics that are means of values by layer and sample [L, S], with their units."""
    experts, rows = work.expert_routed, work.rows
    copies, load = experts.sum(axis=-1), np.maximum(rows.mean(axis=-1), 1e-12)
    return {
        "dropped_token_fraction": (np.maximum(0.0, 1 - work.expert_kept.sum(-1) / np.maximum(copies, 1)), "fraction"),
        "expert_load_max_over_mean": (experts.max(-1) / np.maximum(experts.mean(-1), 1e-12), "ratio"),
        "rank_load_max_over_mean": (rows.max(-1) / load, "ratio"),
        "idle_expert_fraction": ((experts == 0).mean(-1), "fraction"),
        "balancedness": (load / np.maximum(rows.max(-1), 1e-12), "ratio"),
    }


def _why(account: Account, work: RoutedWork, values: Floats, unit: str) -> str:
    """The load, how far single layers and samples are apart, and what the range is of."""
    low, high = (float(end) for end in np.quantile(values, APART))
    told = [show(end, unit) if unit == "fraction" else f"{end:.3g}" for end in (low, high)]
    apart = f"from {told[0]} to {told[1]} (5-95 %)" if told[0] != told[1] else f"all {told[0]}"
    name, layers, samples = account.scenario.routing.load.name, work.rows.shape[0], work.samples
    if work.slots is not None:
        spec = account.scenario.placement
        name += f", placement {spec.strategy}" + f" + {spec.redundant_experts}" * bool(spec.redundant_experts)
    if not account.observed.drawn:
        return f"load {name}, expected, not drawn; {layers} MoE layers {apart}"
    range_of = "range: of their mean" if samples > 1 else "one sample cannot tell a range"
    return f"load {name}; {layers} MoE layers x {samples} samples {apart}; {range_of}"


def _padded(uncertainty: Uncertainty, work: RoutedWork, basis: Basis) -> Quantity:
    note, kept, rows = "rows computed that hold padding", work.expert_kept.sum(axis=-1), work.rows.sum(axis=-1)
    if not rows.sum() > kept.sum() * (1 + 1e-9):
        return Quantity.exact(0.0, "fraction", note, basis)
    full = EXACT if uncertainty.sampling is None else uncertainty.sampling.ratio(kept, rows)
    value, margin = float(1 - kept.sum() / rows.sum()), full._replace(below=full.above, above=full.below)
    return within_share(ranged(value, "fraction", basis, note, margin=margin))


def _popularity_skew(account: Account, basis: Basis) -> Quantity:
    """Busiest expert over the mean by what a token wants on average, mean over layers: nothing is drawn for it."""
    chance = load_moments(account.model).chance
    each = chance.max(axis=-1) / chance.mean(axis=-1)
    low, high = np.quantile(each, APART)
    note = f"load {account.scenario.routing.load.name}; {len(each)} MoE layers from {low:.3g} to {high:.3g} (5-95 %)"
    return Quantity.exact(float(each.mean()), "ratio", note, basis)


def _cache(account: Account, work: RoutedWork) -> dict[str, Quantity]:
    """What off-loaded experts mean for tokens that come one by one."""
    scenario, model = account.scenario, account.model
    offload, hits = scenario.placement.offload, work.held
    if hits is None or offload is None:
        return {}
    wanted = scenario.router.copies(1.0, 1.0) * len(model.moe_index)
    seconds = (1.0 - hits) * wanted * expert_bytes(model) / offload.host_bandwidth
    kept = f"{offload.resident} experts of each layer kept on each GPU, the {offload.keep} ones"
    return {
        "expert_cache_hit_fraction": Quantity.exact(hits, "fraction", kept, "assumed"),
        "expert_fetch_time_per_token": Quantity.exact(seconds, "s", "bf16 weights, no overlap", "assumed"),
    }
