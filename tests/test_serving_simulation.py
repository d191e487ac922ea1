"""Serving as a user meets it: requests drawn and read, the real law, tables, files, pages, pictures, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from serving_fixture import LinearLaw, pool, requests

import moesim
from moesim.columns import ITERATIONS, REQUESTS, SERVING
from moesim.errors import FileError, InfeasibleError, UserError
from moesim.iteration.batch import Batch
from moesim.randomness import Streams
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving import metrics
from moesim.serving.bins import binned
from moesim.serving.deployment import engine_pools, pool_laws
from moesim.serving.recorder import Log
from moesim.serving.report import write_serving_html
from moesim.serving.requests import draw_requests
from moesim.serving.result import ServingResult
from moesim.serving.routed_samples import sampled_imbalances
from moesim.serving.run import simulate_serving
from moesim.serving.simulation import simulate_requests
from moesim.serving.table import GROUPS, serving_rows
from moesim.serving.trace_file import read_trace
from moesim.specs.serving import ServingWorkload

ROOT = Path(__file__).parents[1]
SCENARIOS = sorted((ROOT / "scenarios" / "serving").glob("*.yaml"))
PICTURES = ("latency", "batch", "kv_cache", "imbalance", "breakdown", "memory")
SERVED: dict[str, Any] = {
    "name": "small",
    "question": "How quick?",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8, "fabric": "none"},
    "instance": {"gpus": 4, "expert": 4},
    "workload": {
        "kind": "serving",
        "requests": 400,
        "input_tokens": {"mean": 500, "deviation": 300},
        "output_tokens": {"low": 20, "high": 120},
        "arrivals": {"kind": "poisson", "rate": 60},
        "limits": {"time_to_first_token": "100 ms", "time_per_output_token": "20 ms"},
    },
    "routing": {"load": "olmoe-like"},
    "prices": {"gpu_hour": 2.5, "electricity": 0.1},
}


def scenario(**changes: Any) -> ServingScenario:
    """The small scenario with dotted keys changed ("workload__arrivals" for workload.arrivals)."""
    return load_serving(SERVED, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def result() -> ServingResult:
    return moesim.simulate(scenario())


def workload(**changes: Any) -> ServingWorkload:
    return scenario(**{f"workload__{key}": value for key, value in changes.items()}).workload


# Requests


def test_arrivals_have_the_stated_rate_and_burstiness() -> None:
    for kind, spread in (("poisson", 1.0), ("bursty", 6.0)):
        arrivals = {"kind": kind, "rate": 25.0, **({"burstiness": spread} if kind == "bursty" else {})}
        drawn = draw_requests(workload(arrivals=arrivals, requests=40_000), Streams(3))
        gaps = np.diff(drawn.arrival)
        assert gaps.mean() == pytest.approx(1 / 25, rel=5 * np.sqrt(spread / 40_000))
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(spread, rel=0.1)


def test_lengths_have_the_stated_law() -> None:
    drawn = draw_requests(workload(requests=40_000), Streams(0))
    assert drawn.input_tokens.mean() == pytest.approx(500, rel=0.02)
    assert drawn.input_tokens.std() == pytest.approx(300, rel=0.05)
    assert (drawn.output_tokens.min(), drawn.output_tokens.max()) == (20, 120)
    counts = np.bincount(drawn.output_tokens)[20:]
    assert counts.std() / counts.mean() < 0.08  # the ends are as likely as the middle


def test_runs_at_other_rates_see_the_same_requests() -> None:
    slow, fast = (draw_requests(workload(arrivals={"kind": "poisson", "rate": rate}), Streams(1)) for rate in (5, 10))
    assert (slow.input_tokens == fast.input_tokens).all()
    assert slow.arrival == pytest.approx(2 * fast.arrival)


def test_kinds_of_work() -> None:
    prompts = draw_requests(scenario(workload__kind="prefill", workload__output_tokens=None,
                                     workload__limits={}).workload, Streams(0))  # fmt: skip
    assert (prompts.output_tokens == 1).all()
    outputs = draw_requests(scenario(workload__kind="decode").workload, Streams(0))
    assert (outputs.cached == outputs.input_tokens).all()
    shared = draw_requests(workload(prefix_cache_share=0.5), Streams(0))
    assert (shared.cached == shared.input_tokens // 2).all()


ROWS = {"timestamp": [10.0, 11.5, 10.25], "input_tokens": [100, 200, 300], "output_tokens": [1, 2, 3]}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_trace_file_is_read_in_order_of_time(suffix: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"requests.{suffix}", pd.DataFrame(ROWS)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.assign(other="x").to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    times, prompts, outputs = read_trace(path)
    assert times.tolist() == [0.0, 0.25, 1.5]
    assert prompts.tolist() == [100, 300, 200]
    assert outputs.tolist() == [1, 3, 2]
    loaded = load_serving({**SERVED, "workload": {"kind": "serving", "arrivals": {"kind": "trace", "path": str(path)}}})
    told = moesim.simulate(loaded)
    assert told.requests["arrival"].tolist() == [0.0, 0.25, 1.5]
    assert any("3 requests, fewer than" in note for note in told.notes)


def test_a_trace_may_tell_date_and_time(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        "timestamp,input_tokens,output_tokens\n2023-11-16 18:17:03.5,10,5\n2023-11-16 18:17:04.25,20,6\n",
        encoding="utf-8",
    )
    assert read_trace(path)[0].tolist() == [0.0, 0.75]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timestamp,input_tokens\n1,2\n", ["no column output_tokens"]),
        ("timestamp,input_token,output_tokens\n1,2,3\n", ["no column input_tokens", "nearest: input_token"]),
        ("timestamp,input_tokens,output_tokens\n", ["holds 0 requests"]),
        ("timestamp,input_tokens,output_tokens\n1,2,3\n2,0,3\n", ["input_tokens, row 2", "from 1"]),
        ("timestamp,input_tokens,output_tokens\n1,2.5,3\n", ["input_tokens, row 1", "whole number"]),
        ("timestamp,input_tokens,output_tokens\n1,2,\n2,2,4\n", ["output_tokens, row 1", "empty"]),
        ("timestamp,input_tokens,output_tokens\n1,many,3\n", ["input_tokens: expected numbers"]),
        ("timestamp,input_tokens,output_tokens\nsoon,2,3\n", ["column timestamp"]),
        ("timestamp,input_tokens,output_tokens\n1,2,3\n1,2\n", ["cannot be read"]),
    ],
)
def test_a_wrong_trace_is_told_with_its_place(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as caught:
        read_trace(path)
    assert all(word in str(caught.value) for word in ("requests.csv", *words)), caught.value


def test_no_trace_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bad.jsonl").write_text('{"timestamp": 1', encoding="utf-8")
    for name in ("absent.csv", "folder.csv", "cut.parquet", "bad.jsonl", "requests.txt"):
        with pytest.raises(FileError, match=name):
            read_trace(tmp_path / name)


# Imbalance


def test_sampled_imbalance_agrees_with_the_laws_expectation() -> None:
    """Tokens drawn one by one against the moments of the same load, where batches are large enough to tell."""
    served = scenario()
    law = pool_laws(served)[0]
    found = sampled_imbalances(served, law).decode
    large = found.tokens >= 128
    expected = law.peaks(found.tokens[large])
    assert found.rank_mean[large] == pytest.approx(expected.rank, rel=0.12)
    assert found.expert_mean[large] == pytest.approx(expected.expert, rel=0.2)
    assert (np.diff(found.expert_mean) < 0.1).all()  # larger batches are more even


def test_even_routing_leaves_chance_alone() -> None:
    served = scenario(routing__load="uniform")
    found = sampled_imbalances(served, pool_laws(served)[0]).decode
    assert found.rank_mean[-1] < 1.1 < found.rank_mean[0]


def test_redundant_experts_even_out_the_ranks() -> None:
    plain, copies = (
        sampled_imbalances(served, pool_laws(served)[0]).decode.rank_mean[-1]
        for served in (scenario(), scenario(placement={"strategy": "global", "redundant_experts": 16}))
    )
    assert copies - 1 < 0.5 * (plain - 1)


# The real law


def test_jumps_and_single_steps_agree_under_the_real_law() -> None:
    served = scenario(workload__requests=60)
    pools = engine_pools(served, pool_laws(served))
    drawn = draw_requests(served.workload, Streams(0))
    jumps, steps = (simulate_requests(pools, drawn, longest_jump=longest) for longest in (64, 1))
    assert jumps.times.end == pytest.approx(steps.times.end, rel=1e-9)


def test_busiest_replica_is_waited_for() -> None:
    """All prompt tokens on one of four replicas: its attention takes four times the work, the experts' is the same."""
    law = pool_laws(scenario())[0]
    whole = [np.array([value]) for value in (16384.0, 16384.0 * 8192, 0.0, 0.0)]
    even = law.parts(Batch(*whole))
    one = law.parts(Batch(*whole, Batch(*whole)))
    alike = law.seconds(Batch(*whole, Batch(*(value / 4 for value in whole))))
    assert alike == pytest.approx(law.seconds(Batch(*whole)))
    for name in ("attention", "scores", "dispatch"):
        assert 2.5 * even[name] < one[name] < 4.5 * even[name], name
    assert one["experts"] == pytest.approx(even["experts"])


def test_both_roads_agree_where_replicas_fill_evenly() -> None:
    """Tensor parallel alone, one replica: the steady state against the simulation. Outputs differ in length, or all
    requests of the loop would end together."""
    served = scenario(
        instance={"gpus": 4, "tensor": 4},
        workload__requests=3000,
        workload__limits={},
        workload__arrivals={"kind": "closed", "concurrency": 64},
        workload__output_tokens={"low": 50, "high": 350},
        workload__input_tokens=500,
    )
    simulated, estimated = moesim.simulate(served).summary, moesim.estimate(served).summary
    for name in ("output_tokens_per_second_per_gpu", "time_per_output_token", "batch_requests"):
        assert simulated[name].value == pytest.approx(estimated[name].value, rel=0.1), name


def test_more_rate_gives_more_throughput_from_larger_batches() -> None:
    arrivals = [{"kind": "poisson", "rate": rate} for rate in (10, 40, 160)]
    found = [moesim.simulate(scenario(workload__arrivals=each)).summary for each in arrivals]
    for name in ("output_tokens_per_second", "batch_requests", "kv_cache_use"):
        assert (np.diff([summary[name].value for summary in found]) > 0).all(), name


def test_bursts_cost_latency() -> None:
    """Two seats a replica: what comes in a burst waits for one."""
    kinds = ({"kind": "poisson", "rate": 20}, {"kind": "bursty", "rate": 20, "burstiness": 16})
    even, bursts = (
        moesim.simulate(scenario(workload__arrivals=each, workload__requests=1000, engine__max_requests=2)).summary
        for each in kinds
    )
    assert bursts["time_to_first_token_p99"].value > 2 * even["time_to_first_token_p99"].value


def test_a_queue_that_grows_is_told() -> None:
    told = moesim.simulate(scenario(workload__arrivals={"kind": "poisson", "rate": 100_000}, workload__requests=2000))
    assert any("queue grows" in note for note in told.notes)
    assert told.summary["requests_per_second"].basis == "fitted"  # then the law sets the pace
    with pytest.raises(InfeasibleError, match="requests/s"):
        moesim.estimate(scenario(workload__arrivals={"kind": "poisson", "rate": 100_000}))


def test_a_model_that_fills_the_gpu_is_infeasible() -> None:
    served = scenario(model="mixtral-8x7b", instance={"gpus": 1}, cluster__gpus=1, workload__kind="serving")
    with pytest.raises(InfeasibleError, match="no room for a KV cache"):
        moesim.simulate(served)


def test_pools_apart_move_every_cache() -> None:
    served = load_serving(
        {
            **{key: value for key, value in SERVED.items() if key != "instance"},
            "cluster": {"gpu": "h100-sxm", "gpus": 16},
            "disaggregated": {"prefill": {"gpus": 4, "expert": 4, "instances": 2}, "decode": {"gpus": 8, "expert": 8}},
        }
    )
    told = moesim.simulate(served)
    law = pool_laws(served)[0]
    alone = np.array([float(law.kv_transfer_seconds(tokens)) for tokens in told.requests["input_tokens"]])
    assert (told.requests["kv_transfer"] >= alone * (1 - 1e-9)).all()
    assert (told.requests["first_token"] == told.requests["prefill_end"] + told.requests["kv_transfer"]).sum() > 390
    assert set(told.requests["prefill_instance"]) == {0, 1}
    assert set(told.iterations["phase"]) == {"prefill", "decode"}
    assert {name.partition(":")[0] for name in told.breakdown} == {"prefill", "decode"}


# Metrics and bins


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


def test_rates_leave_filling_and_draining_out() -> None:
    """A closed loop under a law of fixed iterations: its beginning and end slow the whole run, not the window."""
    served = scenario(workload__limits={})
    outputs = np.random.default_rng(0).integers(20, 120, 1000)
    run = simulate_requests([pool(LinearLaw(constant=0.02))], requests(np.zeros(1000), 100, outputs, concurrency=200))
    begin, end, said = metrics.window(run)
    assert said == "of the time when the deployment neither fills nor runs dry"
    told = metrics.rate_metrics(run, metrics.Latencies(run, served), served, lambda name: 0.1)
    # 200 in the batch, a token each 20 ms: the first one in the iteration that computes the prompt.
    assert told["output_tokens_per_second"].value == pytest.approx(200 / 0.02, rel=0.02)
    assert told["output_tokens_per_second"].value > 1.05 * outputs.sum() / run.times.end.max()
    assert told["requests_per_second"].value == pytest.approx(700 / (end - begin), rel=0.02)


# Files, tables, pages


def test_every_column_and_metric_is_documented(result: ServingResult) -> None:
    assert set(result.requests.columns) == set(REQUESTS)
    assert set(result.iterations.columns) == set(ITERATIONS)
    estimated = moesim.estimate(scenario())
    for found in (result, estimated):
        assert set(found.summary) <= set(SERVING)
        for name, quantity in found.summary.items():
            assert quantity.unit == SERVING[name].unit, name
    assert {name for members in GROUPS.values() for name in members} == set(SERVING)
    off_loaded = {"expert_cache_hit_fraction", "expert_fetch_fraction", "host_memory_per_gpu"}
    assert {row.name for row in serving_rows(result)} == set(SERVING) - off_loaded


def test_same_scenario_same_bytes(result: ServingResult, tmp_path: Path) -> None:
    again = moesim.simulate(scenario())
    first, second = (moesim.save(one, tmp_path / name) for one, name in ((result, "a"), (again, "b")))
    assert [path.name for path in first] == ["requests.parquet", "iterations.parquet", "report.html", "result.json"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_result_comes_back_whole(result: ServingResult, tmp_path: Path) -> None:
    moesim.save(result, tmp_path)
    back = moesim.load_result(tmp_path)
    assert isinstance(back, ServingResult)
    assert back.as_dict() == result.as_dict()
    pd.testing.assert_frame_equal(back.requests, result.requests, check_dtype=False)
    pd.testing.assert_frame_equal(
        back.iterations[list(ITERATIONS)], result.iterations[list(ITERATIONS)], check_dtype=False
    )


def test_a_table_of_another_run_is_refused(result: ServingResult, tmp_path: Path) -> None:
    moesim.save(result, tmp_path)
    table = tmp_path / "requests.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(FileError, match="changed, cut"):
        moesim.load_result(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps({**document, "surprise": 1}), encoding="utf-8")
    with pytest.raises(FileError, match="surprise"):
        moesim.load_result(tmp_path)


def test_one_folder_holds_one_result(result: ServingResult, tmp_path: Path) -> None:
    """A serving result replaces a training one and leaves none of its files."""
    for name in ("operations.parquet", "timeline.json", "routing.parquet"):
        (tmp_path / name).write_text("of an earlier result", encoding="utf-8")
    moesim.save(result, tmp_path)
    assert not (tmp_path / "operations.parquet").exists()
    assert not (tmp_path / "timeline.json").exists()


def test_the_page_is_whole_and_escapes_the_user(result: ServingResult) -> None:
    page = write_serving_html(replace(result, question="<script>alert(1)</script>"))
    assert "<script>alert" not in page
    for heading in ("Summary", "Latency", "Batch", "KV cache", "Imbalance", "Iterations", "Memory", "Scenario"):
        assert f"<h2>{heading}</h2>" in page
    assert write_serving_html(moesim.estimate(scenario()))


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_draws(name: str, result: ServingResult) -> None:
    for found in (result, moesim.estimate(scenario())):
        spec = getattr(found.charts, name)().to_dict()
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
        assert spec == getattr(found.charts, name)().to_dict()


def _run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesim", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=wide)


def test_the_verbs(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SERVED), encoding="utf-8")
    told = _run("simulate", path, "--out", "out", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["summary"]["time_to_first_token"]["value"] > 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "requests.parquet", "iterations.parquet", "report.html", "result.json",
    }  # fmt: skip
    table = _run("estimate", path, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "output tokens per second per GPU" in table.stdout
    refused = _run("compare", path, "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_progress_is_told_to_its_end() -> None:
    heard: list[tuple[str, float]] = []
    simulate_serving(scenario(), lambda what, share: heard.append((what, share)))
    assert heard[-1] == ("simulating requests", 1.0)
    assert [share for what, share in heard if what == "simulating requests"] == sorted(
        share for what, share in heard if what == "simulating requests"
    )


def test_missing_lengths_are_told() -> None:
    with pytest.raises(UserError, match="output_tokens"):
        load_serving(SERVED, ["workload.output_tokens=null"])


# Shipped scenarios


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_runs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("question: ")
    assert text.splitlines()[0].endswith("?")
    served = load_serving(path, ["workload.requests=300"])
    told = moesim.simulate(served)
    assert (told.requests["end"] > told.requests["arrival"]).all()
    assert moesim.estimate(load_serving(path)).summary["output_tokens_per_second"].value > 0
