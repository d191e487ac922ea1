"""Both roads from a serving scenario to its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.iteration.batch import Batch
from moesim.iteration.law import IterationLaw
from moesim.provenance import Quantity
from moesim.randomness import Streams
from moesim.results.result import Columns
from moesim.scenario.serving import ServingScenario
from moesim.serving import metrics, words
from moesim.serving.bins import binned
from moesim.serving.closed_form import SteadyState, steady_state
from moesim.serving.deployment import EnginePool, engine_pools, pool_laws
from moesim.serving.offload_metrics import FETCH, held_expected, held_in, offload_metrics
from moesim.serving.requests import draw_requests
from moesim.serving.result import ServingResult
from moesim.serving.simulation import Progress, Run, simulate_requests
from moesim.serving.window import Worked
from moesim.units import show

COMMUNICATION = ("dispatch", "combine", "tensor_parallel", "pipeline")


def simulate_serving(scenario: ServingScenario, progress: Progress | None = None) -> ServingResult:
    """The simulation of `scenario`; `progress(what, share)` hears how far it is.

    Raises `InfeasibleError` where an instance has no room for a KV cache, or a request does not fit into it.
    """
    if progress is not None:
        progress("routing tokens", 0.0)
    laws = pool_laws(scenario)
    pools = engine_pools(scenario, laws)
    if progress is not None:
        progress("routing tokens", 1.0)
    requests = draw_requests(scenario.workload, Streams(scenario.simulation.seed))
    run = simulate_requests(pools, requests, scenario.engine.request_router, progress)
    if progress is not None:
        progress("simulating requests", 1.0)
    return _simulated(scenario, laws, pools, run)


def _simulated(
    scenario: ServingScenario, laws: Sequence[IterationLaw], pools: Sequence[EnginePool], run: Run
) -> ServingResult:
    error, found, worked = metrics.doubt(scenario), metrics.Latencies(run, scenario), Worked(run)
    rates = metrics.rate_metrics(run, found, scenario, error, worked)
    gpus = [pool.gpus for pool in pools for _ in range(pool.count)]
    breakdown, moved, fetching, busy = _breakdown(laws, pools, run)
    working = busy / (scenario.gpus_used * max(float(run.times.end.max()), 1e-12))
    memory = fullest(laws)
    summary = {
        **metrics.latency_metrics(found, error, worked.window.overloaded),
        **rates,
        **metrics.busy_metrics(run, gpus, worked),
        "communication_fraction": _fraction(moved, busy),
        **offload_metrics(scenario, laws, held_in(run.logs), fetching / busy if busy else 0.0),
        **memory_metrics(scenario, memory),
        **metrics.money_metrics(scenario, rates["output_tokens_per_second"], min(1.0, working)),
    }
    summary = {name: replace(one, note=one.note + words.beside(scenario, name)) for name, one in summary.items()}
    if not scenario.model.is_moe:
        summary = {name: value for name, value in summary.items() if not name.endswith("load_max_over_mean")}
    return ServingResult(
        name=scenario.name,
        question=scenario.question,
        road="simulate",
        scenario=scenario.document(),
        summary=summary,
        breakdown=breakdown,
        memory=memory,
        notes=tuple(words.simulated(scenario, run, worked)),
        request_columns=request_columns(run, found),
        iteration_columns=binned(run.logs, float(run.times.end.max())),
    )


def _breakdown(
    laws: Sequence[IterationLaw], pools: Sequence[EnginePool], run: Run
) -> tuple[dict[str, float], float, float, float]:
    """Seconds of each pool's mean iteration by part; and GPU-seconds of communication, of waiting for experts from host
    memory, and of all iterations."""
    breakdown: dict[str, float] = {}
    moved = fetching = busy = 0.0
    logs = iter(run.logs)
    for law, pool in zip(laws, pools, strict=True):
        columns = [next(logs).columns() for _ in range(pool.count)]
        whole = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        iterations = whole["iterations"]
        if not len(iterations):
            continue
        batch = Batch(
            whole["prefill_tokens"] / iterations,
            whole["prefill_pairs"] / iterations,
            whole["decoders"],
            whole["decode_context"],
        )
        held = None if law.fetch is None else law.fetch.nothing(len(iterations))
        by_part = law.parts(batch, whole["rank_peak"], held)
        parts = {name: float((value * iterations).sum()) for name, value in by_part.items()}
        # Parts are those of evenly filled replicas that hold their experts; the rest of the time taken is what unequal
        # ones cost, or waiting for experts.
        seconds = float((whole["end"] - whole["begin"]).sum())
        rest = "waiting for the busiest replica" if law.fetch is None else FETCH
        parts[rest] = max(0.0, seconds - sum(parts.values()))
        label = f"{pool.phase}: " if len(pools) > 1 else ""
        count = float(iterations.sum())
        breakdown |= {label + name.replace("_", " "): value / count for name, value in parts.items() if value > 0}
        moved += pool.gpus * sum(parts.get(name, 0.0) for name in COMMUNICATION)
        fetching += pool.gpus * parts.get(FETCH, 0.0)
        busy += pool.gpus * seconds
    return breakdown, moved, fetching, busy


def _fraction(moved: float, busy: float) -> Quantity:
    value = moved / busy if busy else 0.0
    return Quantity.exact(value, "fraction", "exchanges and collectives that compute waits for", "fitted")


def fullest(laws: Sequence[IterationLaw]) -> dict[str, float]:
    """Bytes by part on the fullest GPU of all pools."""
    found = max((law.memory_parts for law in laws), key=lambda parts: sum(parts.values()))
    return {name.replace("_", " "): value for name, value in found.items() if value}


def memory_metrics(scenario: ServingScenario, memory: dict[str, float]) -> dict[str, Quantity]:
    """Memory of the fullest GPU, and how much of what is given weights and buffers take."""
    total = sum(memory.values())
    given = scenario.cluster.gpu.memory * scenario.engine.kv_cache_fraction
    taken = total - memory.get("kv cache", 0.0)
    note = f"of {show(given, 'B')}: {scenario.engine.kv_cache_fraction:g} of the GPU's memory"
    return {
        "memory_per_gpu": Quantity.exact(total, "B", "fullest GPU; parts in the memory table"),
        "fits_in_memory": Quantity.exact(taken / given, "ratio", f"weights and buffers {note}"),
    }


def request_columns(run: Run, found: metrics.Latencies) -> Columns:
    """One entry a request, as `moesim.columns.REQUESTS`."""
    times, requests = run.times, run.requests
    columns: dict[str, NDArray[Any]] = {
        "request": np.arange(requests.count),
        "arrival": times.arrival,
        "input_tokens": requests.input_tokens,
        "cached_tokens": requests.cached,
        "output_tokens": requests.output_tokens,
        "begin": times.begin,
        "prefill_end": times.prefilled,
        "kv_transfer": times.transfer,
        "first_token": times.first,
        "end": times.end,
        "prefill_instance": times.prefill_instance,
        "decode_instance": times.decode_instance,
        "time_to_first_token": found.first,
        "time_per_output_token": found.per_token,
        "latency": found.whole,
        "within_limits": found.within.astype(np.int32),
    }
    return columns


def estimate_serving(scenario: ServingScenario, *, even_if_infeasible: bool = False) -> ServingResult:
    """The steady state of `scenario` in closed form, as a result without tables.

    Raises `InfeasibleError` where there is none, unless `even_if_infeasible`; metrics that would be infinite are then
    left out.
    """
    laws = pool_laws(scenario)
    state = steady_state(scenario, laws)
    if not state.feasible and not even_if_infeasible:
        raise InfeasibleError(f"{scenario.name}: {state.binding}")
    memory = fullest(laws)
    summary = {
        **_steady(scenario, state, metrics.doubt(scenario)),
        **_expected_peaks(scenario, laws, state),
        **memory_metrics(scenario, memory),
    }
    if "output_tokens_per_second" in summary:
        summary |= metrics.money_metrics(scenario, summary["output_tokens_per_second"])
    total = sum(state.parts.values())
    if total:
        moved = sum(state.parts.get(name, 0.0) for name in COMMUNICATION)
        summary["communication_fraction"] = replace(_fraction(moved, total), note="of the iterations that decode")
        waiting = state.parts.get(FETCH, 0.0) / total
        summary |= offload_metrics(scenario, laws, held_expected(laws, state.decoding), waiting)
    return ServingResult(
        name=scenario.name,
        question=scenario.question,
        road="estimate",
        scenario=scenario.document(),
        summary=summary,
        breakdown={name.replace("_", " "): value for name, value in state.parts.items() if value > 0},
        memory=memory,
        notes=tuple(words.estimated(scenario, state.binding)),
    )


def _steady(scenario: ServingScenario, state: SteadyState, error: metrics.Doubt) -> dict[str, Quantity]:
    """The means of the steady state; those that are not finite, or nothing, are left out."""
    closed = scenario.workload.arrivals.kind == "closed" or not state.feasible
    times = {name: getattr(state, name) for name in ("time_to_first_token", "time_per_output_token", "request_latency")}
    rates = {
        "requests_per_second": (state.requests_per_second, "1/s"),
        "output_tokens_per_second": (state.output_tokens_per_second, "token/s"),
        "output_tokens_per_second_per_gpu": (state.output_tokens_per_second / scenario.gpus_used, "token/s"),
        "input_tokens_per_second": (state.input_tokens_per_second, "token/s"),
    }
    told = {name: value for name, value in times.items() if math.isfinite(value) and value > 0}
    found: dict[str, Quantity] = {}
    for name, value in told.items():
        note = "mean of the steady state" + words.beside(scenario, name)
        mean = Quantity.within(value, "s", error(name), "fitted", note)
        found |= {name: replace(mean, note=f"{note}; it tells no median"), f"{name}_mean": mean}
    for name, (value, unit) in rates.items():
        if value > 0:
            note = f"limit: {state.binding}" if closed else "as many as come"
            found[name] = Quantity.within(
                value, unit, error(name) if closed else 0.0, "fitted" if closed else "derived", note
            )
    found["kv_cache_use"] = Quantity.exact(state.kv_use, "fraction", "an instance that decodes", "fitted")
    found["batch_requests"] = Quantity.exact(state.batch, "", "an instance that decodes", "fitted")
    return found


def _expected_peaks(scenario: ServingScenario, laws: Sequence[IterationLaw], state: SteadyState) -> dict[str, Quantity]:
    """The expected imbalance of the mean iteration that decodes."""
    if not scenario.model.is_moe or not state.decoding:
        return {}
    positions = 1 + scenario.engine.drafted
    peaks = laws[-1].peaks(np.array([max(1.0, state.decoding * positions)]))
    note = "expected, of iterations that decode"
    return {
        "rank_load_max_over_mean": Quantity.exact(float(peaks.rank[0]), "ratio", note, "fitted"),
        "expert_load_max_over_mean": Quantity.exact(float(peaks.expert[0]), "ratio", note, "fitted"),
    }
