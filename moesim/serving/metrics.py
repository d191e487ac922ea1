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
from moesim.provenance import Quantity
from moesim.scenario.serving import ServingScenario
from moesim.serving.simulation import Run

Floats = NDArray[np.float64]
GROUPS, LEAST_OF_GROUP = 10, 20


Doubt = Callable[[str], float]
"""Relative error of the law in a metric."""


def doubt(scenario: ServingScenario) -> Doubt:
    """What nine in ten measured values of the scenario's stack keep, by metric."""
    return partial(band, scenario.stack, scenario.cluster.calibration)


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


def latency_metrics(found: Latencies, error: Doubt) -> dict[str, Quantity]:
    """Median and 99th percentile of each latency."""
    metrics = {}
    for name, values in found.by_name.items():
        chosen = values[found.several] if name == "time_per_output_token" else values
        if not len(chosen):
            continue
        metrics[name] = _ranged(chosen, _median, "s", error(name), f"median of {len(chosen):,} requests")
        metrics[f"{name}_p99"] = _ranged(chosen, _p99, "s", error(name), f"99th percentile of {len(chosen):,} requests")
    return metrics


def _median(values: Floats) -> float:
    return float(np.median(values))


def _p99(values: Floats) -> float:
    return float(np.quantile(values, 0.99))


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


def window(run: Run) -> tuple[float, float, str]:
    """The time in which rates are measured, and its name: between the tenth and ninetieth hundredth of the requests'
    ends and before the last arrival, where the deployment is neither filling nor running dry; the whole run where that
    is shorter than a request.
    """
    times = run.times
    begin, end = (float(value) for value in np.quantile(times.end, (0.1, 0.9)))
    end = min(end, float(times.arrival.max()))
    if end - begin < float(np.median(times.end - times.arrival)):
        return float(times.arrival.min()), float(times.end.max()), "over the whole run"
    return begin, end, "of the time when the deployment neither fills nor runs dry"


def rate_metrics(run: Run, found: Latencies, scenario: ServingScenario, error: Doubt) -> dict[str, Quantity]:
    """Tokens and requests a second within the window, and the share that keeps the limits."""
    begin, end, said = window(run)
    seconds = max(end - begin, 1e-12)
    requests, times = run.requests, run.times
    share = _overlap(times.first, times.end, begin, end)
    outputs = float((1 + (requests.output_tokens - 1) * share)[share > 0].sum()) / seconds
    ended = (times.end > begin) & (times.end <= end)
    prompts = float(requests.input_tokens[_inside(times.prefilled, begin, end)].sum()) / seconds
    # Where arrivals set the pace, the law's error does not move the rate.
    doubted = error("output_tokens_per_second") if requests.concurrency is not None or growing(run) else 0.0
    noise = sampling_error(np.diff(np.sort(times.end[ended])), lambda gaps: float(gaps.mean()))
    relative = float(np.hypot(doubted, noise))

    def quantity(value: float, unit: str, note: str = said) -> Quantity:
        return Quantity.within(value, unit, relative, "fitted" if doubted else "derived", note)

    whole = float(ended.sum()) / seconds
    good = float((ended & found.within).sum()) / seconds
    metrics = {
        "requests_per_second": quantity(whole, "1/s"),
        "output_tokens_per_second": quantity(outputs, "token/s"),
        "output_tokens_per_second_per_gpu": quantity(
            outputs / scenario.gpus_used, "token/s", f"{scenario.gpus_used:,} GPUs; {said}"
        ),
        "input_tokens_per_second": quantity(prompts, "token/s"),
    }
    limits = scenario.workload.limits.stated
    if limits:
        told = ", ".join(f"{name} {limit:g} s" for name, limit in limits.items())
        fraction = float(found.within.mean())
        spread = 2 * float(np.sqrt(fraction * (1 - fraction) / requests.count))
        low, high = max(0.0, fraction - spread), min(1.0, fraction + spread)
        note = f"limits: {told}; the range is the sample's alone"
        metrics["goodput_requests_per_second"] = quantity(good, "1/s", f"limits: {told}")
        metrics["goodput_fraction"] = Quantity(fraction, "fraction", low, high, "fitted", note)
    return metrics


def _inside(values: Floats, begin: float, end: float) -> NDArray[np.bool_]:
    return (values > begin) & (values <= end)


def _overlap(first: Floats, last: Floats, begin: float, end: float) -> Floats:
    """Share of [first, last] of each request within the window; of a single instant 1 or 0."""
    length = np.maximum(last - first, 1e-12)
    return np.clip((np.minimum(last, end) - np.maximum(first, begin)) / length, 0.0, 1.0)


def growing(run: Run) -> bool:
    """Whether the queue grows through an open run: requests come faster than they are served."""
    if run.requests.concurrency is not None or run.requests.count < GROUPS * LEAST_OF_GROUP:
        return False
    wait = run.times.first - run.times.arrival
    third = len(wait) // 3
    early, middle, late = (float(np.median(part)) for part in (wait[:third], wait[third:-third], wait[-third:]))
    return late > 1.5 * middle > 1.5 * 1.5 * early and late > 0.1 * float(run.times.end.max()) / 3


class Busy:
    """Means over the time that engines worked within the window."""

    def __init__(self, run: Run) -> None:
        self.logs = run.logs
        self.columns = [log.columns() for log in run.logs]
        begin, end, _ = window(run)
        self.seconds = [
            np.maximum(np.minimum(each["end"], end) - np.maximum(each["begin"], begin), 0.0) for each in self.columns
        ]

    def mean(self, column: str, weights: Sequence[float], *, per_room: bool = False) -> float:
        """Mean of a column, each engine's time counted with its weight."""
        total = time = 0.0
        for log, columns, seconds, weight in zip(self.logs, self.columns, self.seconds, weights, strict=True):
            room = float(log.kv_tokens) if per_room else 1.0
            total += weight * float((columns[column] * seconds).sum()) / room
            time += weight * float(seconds.sum())
        return total / time if time else 0.0

    def extent(self, column: str) -> tuple[float, float]:
        """5 and 95 % of a column over the time worked."""
        values = np.concatenate([each[column] for each in self.columns])
        seconds = np.concatenate(self.seconds)
        if not seconds.sum():
            return 1.0, 1.0
        order = np.argsort(values)
        upto = np.cumsum(seconds[order]) / seconds.sum()
        places = np.minimum(np.searchsorted(upto, (0.05, 0.95)), len(values) - 1)
        low, high = (float(value) for value in values[order][places])
        return low, high


def busy_metrics(run: Run, gpus_by_log: Sequence[int]) -> dict[str, Quantity]:
    """Batch and KV cache of the engines that decode; the imbalance of all, by GPU time."""
    busy = Busy(run)
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
