"""One factor a serving stack from measured throughputs, and serving cases in validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import moesim
from moesim.calibration.serving_fit import LEAST_ROWS, fit_serving
from moesim.iteration.law import IterationLaw
from moesim.iteration.stack import time_factor
from moesim.scenario.loading import load_serving
from moesim.serving.closed_form import steady_state
from moesim.validation import cases
from moesim.validation.cases import SHIPPED, Case
from moesim.validation.predict import Refusal, predict

BASE: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus": 2},
    "instance": {"gpus": 2, "tensor": 2},
}


def case(stack: str, concurrency: int, factor: float, **changes: Any) -> Case:
    """A throughput that the law gives where kernels take `factor` times as long as alone."""
    arrivals = {"kind": "closed", "concurrency": concurrency}
    work = {"kind": "serving", "input_tokens": 512, "output_tokens": 128, "arrivals": arrivals}
    document = {**BASE, "stack": stack, "workload": work}
    loaded = load_serving(document)
    laws = [IterationLaw(loaded, pool.instance, pool.phase).with_factor(factor) for pool in loaded.pools]
    said = steady_state(loaded, laws).output_tokens_per_second / 2
    item = {
        "id": f"{stack}/{concurrency}",
        "kind": "serving",
        "scenario": document,
        "measured": {"output_tokens_per_second_per_gpu": said},
    }
    return cases.one({**item, **changes}, "here")


def test_the_factor_of_a_stack_is_found_again() -> None:
    sizes = [2, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len(sizes) == LEAST_ROWS
    made = fit_serving([case("mine 1.0", size, 1.3) for size in sizes], "2026-11-22")
    entry = made.entries["serving"]
    assert entry["time_factor"] == {"mine": pytest.approx(1.3, rel=2e-3), "mine 1.0": pytest.approx(1.3, rel=2e-3)}
    assert entry["residual"]["p90"] < 0.01
    assert entry["residual_of_shipped"]["median"] > 0.1
    assert (made.used, made.left_out) == (10, {})
    assert entry["source"]["date"] == "2026-11-22"


def test_a_few_wrong_rows_do_not_bend_it_and_few_rows_have_the_products() -> None:
    right = [case("mine 1.0", size, 1.2) for size in (2, 4, 8, 16, 32)]
    far = [case("mine 2.0", 64, 3.0)]
    factors = fit_serving([*right, *far]).entries["serving"]["time_factor"]
    assert factors == {"mine": pytest.approx(1.2, rel=5e-3)}


def test_what_tells_nothing_is_left_out_with_the_reason() -> None:
    known = case("mine 1.0", 4, 1.0, known="prompts were cached")
    other = cases.one({"id": "gemm", "kind": "gemm", "op": {}, "measured": {"time": 1.0}}, "here")
    large = case("mine 1.0", 8, 1.0)
    large = cases.one(
        {"id": "big", "kind": "serving", "scenario": {**(large.scenario or {}), "model": "llama-3.1-405b"},
         "measured": {"output_tokens_per_second": 5.0}}, "here",
    )  # fmt: skip
    made = fit_serving([known, other, large])
    reasons = " ".join(made.left_out.values())
    assert (made.used, made.entries) == (0, {})
    assert "known to fail there: prompts were cached" in reasons
    assert "no steady state" in reasons


def test_the_file_of_a_fit_goes_before_the_catalog(tmp_path: Path) -> None:
    listed = [case("mine 1.0", size, 1.4) for size in (4, 16, 64)]
    path = tmp_path / "cases.json"
    rows = [{"id": one.id, "kind": one.kind, "scenario": one.scenario, "measured": one.measured} for one in listed]
    path.write_text(json.dumps(rows), encoding="utf-8")
    made = moesim.calibrate(path, tmp_path / "own.yaml")
    assert made.rows == 3
    assert made.moved["serving.time_factor.mine"][1] == pytest.approx(1.4, rel=2e-3)
    own = str(tmp_path / "own.yaml")
    assert time_factor("mine 1.0", own) == pytest.approx(1.4, rel=2e-3)
    assert time_factor("vllm", own) == time_factor("vllm")
    for one in listed:
        found = predict(one, calibration=own)
        assert not isinstance(found, Refusal)
        told = one.measured["output_tokens_per_second_per_gpu"]
        assert found["output_tokens_per_second_per_gpu"].value == pytest.approx(told, rel=5e-3)


def test_a_case_is_predicted_with_range_and_notes_or_has_its_reason() -> None:
    found = predict(case("sglang 0.5.9", 16, 1.0))
    assert not isinstance(found, Refusal)
    throughput = found["output_tokens_per_second_per_gpu"]
    assert throughput.low < throughput.value < throughput.high
    assert throughput.basis == "fitted"
    assert "serving stack: sglang 0.5.9" in throughput.notes
    assert {"time_to_first_token", "time_per_output_token", "requests_per_second"} <= set(found)
    unknown = predict(case("mine", 16, 1.0))
    assert not isinstance(unknown, Refusal)
    assert unknown["time_per_output_token"].basis == "assumed"
    large = {**BASE, "model": "llama-3.1-405b", "workload": case("mine", 4, 1.0).scenario["workload"]}  # type: ignore[index]
    refused = predict(cases.one({"id": "x", "kind": "serving", "scenario": large, "measured": {"ttft": 1}}, "here"))
    assert isinstance(refused, Refusal)
    assert "memory: weights and buffers need" in refused.reason


def test_a_case_is_simulated_where_that_is_asked() -> None:
    """Means, as benchmarks publish them, of the requests that the case states; with the other statistics beside."""
    one = case("sglang 0.5.9", 8, 1.0)
    assert one.scenario is not None
    short = {**one.scenario["workload"], "requests": 60, "output_tokens": 32}
    asked = cases.one({"id": "x", "kind": "serving", "scenario": {**one.scenario, "workload": short},
                       "measured": {"tpot": 0.01, "time_to_first_token_p99": 0.1}}, "here")  # fmt: skip
    found, steady = predict(asked, simulate=True), predict(asked)
    assert not isinstance(found, Refusal)
    assert not isinstance(steady, Refusal)
    run = moesim.simulate(load_serving(asked.scenario or {}))
    rate, token = "output_tokens_per_second_per_gpu", "time_per_output_token"
    assert found[rate].value == run.summary[rate].value != steady[rate].value
    assert found[token].value == run.summary.get(f"{token}_mean", run.summary[token]).value
    assert found[token].low < found[token].value < found[token].high
    assert "simulated: 60 requests" in found[rate].notes
    assert "time_to_first_token_p99" in found
    assert "time_to_first_token_p99" not in steady
    assert predict(asked, simulate=True) == found


def test_the_shipped_cases_hold() -> None:
    path = SHIPPED / "serving.yaml"
    found = moesim.validate(path)
    assert found.broken == ()
    assert not [row for row in found.cases if row.predicted is None]
    rows = [row for row in found.cases if row.metric == "output_tokens_per_second_per_gpu" and not row.known]
    assert len(rows) >= 60
    assert {row.model for row in rows} >= {"gpt-oss-120b", "deepseek-v3", "mixtral-8x7b", "llama-3.1-70b"}
    assert all(case.source for case in cases.read([path]))
    misses = sorted(abs(row.error or 0.0) for row in rows)
    assert misses[len(misses) // 2] < 0.10
