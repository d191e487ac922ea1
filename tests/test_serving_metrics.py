"""What the metrics of a run say: they follow from its tables, tell their statistic, and mean the same on both roads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fixture import LLAMA, PREFILL, RATES, llama, scenario

import moesim
from moesim.scenario.loading import load_serving
from moesim.serving.bins import binned
from moesim.serving.recorder import Log
from moesim.serving.report import write_serving_html
from moesim.serving.result import ServingResult
from moesim.serving.table import MEDIANS, serving_rows


@pytest.fixture(scope="module")
def result() -> ServingResult:
    return moesim.simulate(scenario())


def test_summary_follows_from_the_tables(result: ServingResult) -> None:
    requests, summary = result.requests, result.summary
    assert summary["time_to_first_token"].value == pytest.approx(
        (requests["first_token"] - requests["arrival"]).median()
    )
    assert summary["request_latency_p99"].value == pytest.approx((requests["end"] - requests["arrival"]).quantile(0.99))
    within = (requests["time_to_first_token"] <= 0.1) & (requests["time_per_output_token"] <= 0.02)
    assert summary["goodput_fraction"].value == pytest.approx(within.mean())
    per_gpu = summary["output_tokens_per_second_per_gpu"].value
    assert per_gpu == pytest.approx(summary["output_tokens_per_second"].value / 8)
    hours = summary["gpu_hours_per_million_output_tokens"].value
    assert hours == pytest.approx(1e6 / per_gpu / 3600)
    assert summary["cost_per_million_output_tokens"].value > 2.5 * hours
    assert sum(result.memory.values()) == pytest.approx(summary["memory_per_gpu"].value)
    for quantity in summary.values():
        assert quantity.low <= quantity.value <= quantity.high


def test_bins_hold_every_token_and_iteration(result: ServingResult) -> None:
    bins, requests = result.iterations, result.requests
    assert bins["output_tokens"].sum() == pytest.approx(requests["output_tokens"].sum())
    assert bins["prefill_tokens"].sum() == pytest.approx((requests["input_tokens"] - requests["cached_tokens"]).sum())
    assert bins["kv_cache_reserved"].max() <= 1
    assert (bins["kv_cache_use"] <= bins["kv_cache_reserved"] + 1e-9).all()
    assert (bins["rank_load_worst"] >= bins["rank_load_max_over_mean"] - 1e-9).all()
    busy = (bins["busy_fraction"] * bins["seconds"]).sum()
    assert 0 < busy < 2 * requests["end"].max()


@given(
    lengths=st.lists(st.tuples(st.floats(0.001, 5), st.floats(0.0, 2)), min_size=1, max_size=12),
    count=st.integers(1, 40),
)
def test_bins_split_stretches_without_loss(lengths: list[tuple[float, float]], count: int) -> None:
    """Any stretches with pauses between, in any number of bins: amounts add up and means stay within extremes."""
    log, clock = Log("mixed0", "mixed", 1000), 0.0
    for index, (length, pause) in enumerate(lengths):
        row = (clock, clock + length, 3.0, 10.0, 7.0, index + 1.0, 2.0, 100.0, 200.0, 1.5, 2.0, 4.0, 1.0, 0.0, 1.0, 1.0)
        log.add(*row)
        clock += length + pause
    rows = binned([log], clock, count)
    assert rows["output_tokens"].sum() == pytest.approx(7.0 * len(lengths))
    assert rows["iterations"].sum() == pytest.approx(3.0 * len(lengths))
    busy = rows["busy_fraction"] * rows["seconds"]
    assert busy.sum() == pytest.approx(sum(length for length, _ in lengths))
    worked = busy > 1e-9
    assert rows["batch_requests"][worked].min() >= 1 - 1e-6
    assert rows["batch_requests"].max() <= len(lengths) + 1e-6


def test_each_latency_is_told_by_median_mean_and_p99(result: ServingResult) -> None:
    requests, summary = result.requests, result.summary
    columns = {"time_to_first_token": "time_to_first_token", "request_latency": "latency"}
    for name, column in columns.items():
        assert summary[name].value == pytest.approx(requests[column].median())
        assert summary[f"{name}_mean"].value == pytest.approx(requests[column].mean())
        assert summary[f"{name}_p99"].value == pytest.approx(requests[column].quantile(0.99))
    labels = {row.name: row.label for row in serving_rows(result)}
    assert labels["request_latency"] == "request latency, median"
    assert labels["request_latency_mean"] == "request latency mean"
    assert summary["request_latency_mean"].note.startswith("mean of 400 requests")


def test_an_estimate_tells_means_and_calls_them_so() -> None:
    told = moesim.estimate(scenario())
    shown = {row.name for row in serving_rows(told)}
    for name in ("time_to_first_token", "time_per_output_token", "request_latency"):
        assert told.summary[name].value == told.summary[f"{name}_mean"].value
        assert told.summary[name].note.startswith("mean of the steady state")
        assert told.summary[name].note.endswith("; it tells no median")
        assert ("server around it" in told.summary[name].note) == (name == "time_to_first_token")
        assert f"{name}_mean" in shown
        assert name not in shown
    assert "request latency mean" in write_serving_html(told)


def test_requests_that_prompts_hold_up_are_in_the_batch() -> None:
    loop = ("workload.arrivals={kind: closed, concurrency: 100}", "workload.requests=400", "cluster.gpus=1")
    chunked, whole = llama(*loop), llama(*loop, "engine.chunked_prefill=false")
    for told in (chunked, whole):
        assert told.summary["batch_requests"].value == pytest.approx(100, rel=0.02)
    assert whole.iterations["batch_requests"].max() <= 100 + 1e-9


@pytest.mark.parametrize(
    "kind", [PREFILL, ("workload.kind=decode",), ("workload.kind=serving",)], ids=["prefill", "decode", "both"]
)
@pytest.mark.parametrize("arrivals", ["{kind: poisson, rate: 10}", "{kind: closed, concurrency: 50}"])
def test_both_roads_mean_the_same_by_each_metric(kind: tuple[str, ...], arrivals: str) -> None:
    """Rates and mean latencies of prompts alone, output alone, and both."""
    settings = (*kind, f"workload.arrivals={arrivals}", "workload.requests=600", "cluster.gpus=1")
    served = load_serving(LLAMA, settings)
    closed, drawn = moesim.estimate(served).summary, moesim.simulate(served).summary
    names = [name for name in (*RATES, *(f"{name}_mean" for name in MEDIANS)) if name in drawn]
    assert names == [name for name in (*RATES, *(f"{name}_mean" for name in MEDIANS)) if name in closed]
    assert ("time_per_output_token_mean" in names) == (kind != PREFILL)
    for name in names:
        near = 0.15 if name.startswith("time_to_first_token") else 0.06
        assert drawn[name].value == pytest.approx(closed[name].value, rel=near), name


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ((*PREFILL, "workload.arrivals.rate=2"), 1.0),
        ((*PREFILL, "workload.arrivals={kind: closed, concurrency: 6}"), 6.0),
        ((*PREFILL, "workload.arrivals={kind: closed, concurrency: 50}"), 1000 * 8192 / 1e6 + 1),  # one in two parts
        (
            (*PREFILL, "workload.arrivals={kind: closed, concurrency: 20}", "workload.input_tokens=20000"),
            8.192 / 20 + 1,
        ),
        (("workload.kind=decode", "workload.arrivals.rate=0.5", "workload.output_tokens=200"), None),
        (("workload.kind=decode", "workload.arrivals.rate=10"), None),
        (("workload.arrivals.rate=0.5", "workload.output_tokens=200"), None),
        (("workload.arrivals.rate=10",), None),
        (("workload.arrivals.rate=10", "engine.chunked_prefill=false"), None),
        (("workload.arrivals={kind: closed, concurrency: 50}",), 50.0),
        (("workload.arrivals={kind: closed, concurrency: 50}", "engine.chunked_prefill=false"), 50.0),
    ],
)
def test_both_roads_hold_the_same_while_they_work(settings: tuple[str, ...], batch: float | None) -> None:
    """Requests in the batch and tokens in the KV cache, prompts that are computed included; `batch`: where it is known
    without either road."""
    served = load_serving(LLAMA, ["workload.requests=300", "cluster.gpus=1", *settings])
    closed, drawn = moesim.estimate(served).summary, moesim.simulate(served).summary
    for name in ("batch_requests", "kv_cache_use"):
        assert drawn[name].value == pytest.approx(closed[name].value, rel=0.1), name
    for found in (closed, drawn):
        assert batch is None or found["batch_requests"].value == pytest.approx(batch, rel=0.05)
