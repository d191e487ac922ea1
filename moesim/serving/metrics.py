"""From what a run saw to the metrics of serving, each with range, basis and note.

Ranges hold the calibration's own error (90 % of its rows) and, where a run was simulated, two standard errors of its
sample, found from groups of successive requests. Q requests, P pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moesim.costs import money
from moesim.iteration.stack import band
from moesim.provenance import Basis, Quantity
from moesim.scenario.serving import ServingScenario
from moesim.serving.simulation import Run
from moesim.serving.window import Worked

Floats = NDArray[np.float64]
GROUPS, LEAST_OF_GROUP = 10, 20


Doubt = Callable[[str], float]
"""Relative error of the law in a metric."""


def doubt(scenario: ServingScenario) -> Doubt:
    """What nine in ten measured values of the scenario's stack keep, by metric."""
    return partial(band, scenario.stack, scenario.cluster.calibration)


def _median(values: Floats) -> float:
    return float(np.median(values))


def _mean(values: Floats) -> float:
    return float(values.mean())


def _p99(values: Floats) -> float:
    return float(np.quantile(values, 0.99))


STATISTICS: dict[str, tuple[str, Callable[[Floats], float]]] = {
    "": ("median", _median),
    "_mean": ("mean", _mean),
    "_p99": ("99th percentile", _p99),
}
"""How the names of the latencies end, and what each says of the requests."""


class Latencies:
    """Times of every request [Q] and what follows from them."""

    def __init__(self, run: Run, scenario: ServingScenario) -> None:
        times, requests = run.times, run.requests
        self.first = times.first - times.arrival
        self.whole = times.end - times.arrival
        further = requests.output_tokens - 1
        self.per_token = np.where(further > 0, (times.end - times.first) / np.maximum(further, 1), 0.0)
        self.several = further > 0
        limits = scenario.workload.limits.stated
        by_name = {
            "time_to_first_token": self.first,
            "time_per_output_token": self.per_token,
            "request_latency": self.whole,
        }
        kept = [by_name[name] <= limit for name, limit in limits.items()]
        self.within = np.logical_and.reduce(kept) if kept else np.ones(requests.count, np.bool_)
        self.by_name = by_name


def latency_metrics(found: Latencies, error: Doubt, overloaded: bool = False) -> dict[str, Quantity]:
    """Median, mean and 99th percentile of each latency; where the deployment is `overloaded` all depend on how long the
    run is."""
    metrics = {}
    for name, values in found.by_name.items():
        several = name == "time_per_output_token"
        chosen = values[found.several] if several else values
        if not len(chosen):
            continue
        grows = "; the queue grows: with more requests it is longer" if overloaded and not several else ""
        for end, (said, statistic) in STATISTICS.items():
            note = f"{said} of {len(chosen):,} requests{grows}"
            metrics[f"{name}{end}"] = _ranged(chosen, statistic, "s", error(name), note)
    return metrics


def sampling_error(values: Floats, statistic: Callable[[Floats], float]) -> float:
    """Two relative standard errors of a statistic of successive requests, without the first group, which finds the
    deployment empty; 0 where they are too few to tell."""
    if len(values) < GROUPS * LEAST_OF_GROUP:
        return 0.0
    whole = statistic(values)
    each = np.array([statistic(group) for group in np.array_split(values, GROUPS)[1:]])
    return float(2 * each.std(ddof=1) / np.sqrt(len(each)) / abs(whole)) if whole else 0.0


def _ranged(values: Floats, statistic: Callable[[Floats], float], unit: str, error: float, note: str) -> Quantity:
    relative = float(np.hypot(error, sampling_error(values, statistic)))
    return Quantity.within(statistic(values), unit, relative, "fitted", note)


def rate_metrics(
    run: Run, found: Latencies, scenario: ServingScenario, error: Doubt, worked: Worked
) -> dict[str, Quantity]:
    """Tokens and requests a second within the window, and the share that keeps the limits."""
    within, said = worked.window, worked.window.note
    requests, times = run.requests, run.times
    ended = within.holds(times.end)
    # Where arrivals set the pace, the law's error does not move the rate.
    doubted = error("output_tokens_per_second") if requests.concurrency is not None or within.overloaded else 0.0
    noise = sampling_error(np.diff(np.sort(times.end[ended])), lambda gaps: float(gaps.mean()))
    relative = float(np.hypot(doubted, noise))

    def quantity(amount: float, unit: str, note: str = said) -> Quantity:
        basis: Basis = "fitted" if doubted else "derived"
        return Quantity.within(amount / within.seconds, unit, relative, basis, note)

    outputs, prompts = worked.total("output_tokens"), requests.input_tokens[within.holds(times.prefilled)]
    each = f"{scenario.gpus_used:,} GPUs; {said}"
    metrics = {
        "requests_per_second": quantity(float(ended.sum()), "1/s"),
        "output_tokens_per_second": quantity(outputs, "token/s"),
        "output_tokens_per_second_per_gpu": quantity(outputs / scenario.gpus_used, "token/s", each),
        "input_tokens_per_second": quantity(float(prompts.sum()), "token/s"),
    }
    limits = scenario.workload.limits.stated
    if limits:
        told = ", ".join(f"{name} {limit:g} s" for name, limit in limits.items())
        fraction = float(found.within.mean())
        spread = 2 * float(np.sqrt(fraction * (1 - fraction) / requests.count))
        low, high = max(0.0, fraction - spread), min(1.0, fraction + spread)
        note = f"limits: {told}; the range is the sample's alone"
        good = float((ended & found.within).sum())
        metrics["goodput_requests_per_second"] = quantity(good, "1/s", f"limits: {told}; {said}")
        metrics["goodput_fraction"] = Quantity(fraction, "fraction", low, high, "fitted", note)
    return metrics


def busy_metrics(run: Run, gpus_by_log: Sequence[int], busy: Worked) -> dict[str, Quantity]:
    """Batch and KV cache of the engines that decode; the imbalance of all, by GPU time."""
    decodes = [float(log.phase != "prefill") for log in run.logs]
    decodes = decodes if any(decodes) else [1.0] * len(decodes)
    reserved = busy.mean("reserved_tokens", decodes, per_room=True)
    found = {
        "batch_requests": Quantity.exact(busy.mean("requests", decodes), "", "an instance that decodes", "fitted"),
        "kv_cache_use": Quantity.exact(
            busy.mean("cached_tokens", decodes, per_room=True),
            "fraction",
            f"reserved for requests let in: {100 * reserved:.3g} %",
            "fitted",
        ),
    }
    for name, column in (("rank_load_max_over_mean", "rank_peak"), ("expert_load_max_over_mean", "expert_peak")):
        low, high = busy.extent(column)
        value = busy.mean(column, [float(gpus) for gpus in gpus_by_log])
        note = "range: 5 to 95 % of the time"
        found[name] = Quantity(value, "ratio", min(low, value), max(high, value), "fitted", note)
    return found


def money_metrics(scenario: ServingScenario, rate: Quantity, working: float = 1.0) -> dict[str, Quantity]:
    """GPU-hours and cost of a million output tokens at `rate` tokens a second; idle GPUs of the cluster are paid too.

    `working`: share of the time that GPUs are in iterations.
    """
    if rate.value <= 0 or rate.low <= 0:
        return {}
    gpus, prices, rating = scenario.cluster.gpus, scenario.prices, scenario.cluster.gpu.power
    idle = gpus - scenario.gpus_used
    note = f"{gpus:,} GPUs" + (f", {idle:,} of them idle" if idle else "")
    hours = rate.inverse(gpus * 1e6 / 3600.0, "GPU-h", note)
    joules = None
    seconds = 1e6 / rate.value
    if rating is not None and prices.electricity is not None:
        busy = scenario.gpus_used * seconds * working
        joules = money.energy_joules(money.draw(rating, prices, stands_still=True), busy, gpus * seconds - busy)
    dollars = money.dollars(hours.value, prices.gpu_hour, joules, prices.electricity)
    found = {"gpu_hours_per_million_output_tokens": hours}
    if dollars is not None:
        parts = [f"GPU-hours at {prices.gpu_hour:g} $"] if prices.gpu_hour is not None else []
        parts += [f"electricity at {prices.electricity:g} $/kWh"] if joules is not None else []
        found["cost_per_million_output_tokens"] = hours.scaled(dollars / hours.value, "$", "; ".join(parts))
    return found
