"""Reading serving scenarios: defaults, overrides, and every mistake with what, where, allowed and nearest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import moesim
from moesim.cli import app
from moesim.errors import ScenarioError, UserError
from moesim.scenario.loading import load_serving, load_training
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import EngineSpec, LengthsSpec

BASE: dict[str, Any] = {
    "question": "How many tokens a second?",
    "model": "deepseek-v3",
    "cluster": {"gpu": "h800-sxm", "gpus": 96},
    "instance": {"gpus": 32, "expert": 32},
    "workload": {
        "kind": "serving",
        "requests": 100,
        "input_tokens": {"mean": 1024, "deviation": 500},
        "output_tokens": 256,
        "arrivals": {"kind": "poisson", "rate": 20},
        "limits": {"time_to_first_token": "2 s", "time_per_output_token": "50 ms"},
    },
    "precision": {"compute": "fp8-block", "dispatch": "fp8-block"},
}
APART = "disaggregated={prefill: {gpus: 32, expert: 32, instances: 2}, decode: {gpus: 32, expert: 32}}"


def load(*settings: str, base: dict[str, Any] | None = None) -> ServingScenario:
    found = moesim.load(base or BASE, settings)
    assert isinstance(found, ServingScenario)
    return found


def complaints(*settings: str) -> dict[str, str]:
    with pytest.raises(ScenarioError) as error:
        load(*settings)
    return {problem.where: problem.what for problem in error.value.problems}


def test_defaults_and_what_auto_means() -> None:
    found = load()
    (pool,) = found.pools
    assert (pool.phase, pool.count, pool.gpus) == ("mixed", 3, 96)
    assert (pool.instance.replicas, pool.instance.expert_split, pool.instance.stage_gpus) == (32, 1, 32)
    assert found.workload.limits.stated == {"time_to_first_token": 2.0, "time_per_output_token": 0.05}
    assert found.routing.load.name == "uniform"
    assert found.gpus_used == 96
    assert load("workload.kind=prefill", "workload.output_tokens=1", "workload.limits={}").pools[0].phase == "prefill"


def test_a_disaggregated_deployment_has_two_pools() -> None:
    found = load("instance=null", APART)
    assert [(pool.phase, pool.count, pool.instance.gpus) for pool in found.pools] == [
        ("prefill", 2, 32),
        ("decode", 1, 32),
    ]
    assert load("instance=null", APART, "cluster.gpus=128").gpus_used == 96


def test_the_document_reads_back_to_the_same() -> None:
    for found in (load(), load("instance=null", APART), load("workload.input_tokens={low: 10, high: 90}")):
        again = moesim.load(json.loads(json.dumps(found.document())))
        assert again == found
        assert isinstance(again, ServingScenario)
        assert again.key == found.key
    assert load("name=other").key == load().key != load("engine.token_budget=4096").key


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["workload.kind=servin"], "workload.kind", ["'servin'", "nearest: serving"]),
        (["workload.arrivals.rat=3"], "workload.arrivals.rat", ["unknown key", "nearest: rate"]),
        (["workload.arrivals.kind=closed"], "workload.arrivals", ["need concurrency", "concurrency: 256"]),
        (["workload.arrivals.burstiness=3"], "workload.arrivals", ["is for bursty arrivals", "poisson"]),
        (["workload.arrivals.kind=poison"], "workload.arrivals.kind", ["nearest: poisson"]),
        (["workload.arrivals.rate=0"], "workload.arrivals.rate", ["above 0"]),
        (["workload.input_tokens=many"], "workload.input_tokens", ["expected a number, {mean, deviation}"]),
        (["workload.input_tokens={low: 3}"], "workload.input_tokens", ["needs low and high"]),
        (["workload.input_tokens={mean: 3, low: 3}"], "workload.input_tokens", ["{mean, deviation}, or {low, high}"]),
        (["workload.input_tokens=null"], "workload.input_tokens", ["is required"]),
        (["workload.prefix_cache_share=1"], "workload.prefix_cache_share", ["below 1"]),
        (["workload.limits.time_to_first_token=2 GB"], "workload.limits.time_to_first_token", ["'GB' is a unit of B"]),
        (["workload.kind=prefill"], "workload.output_tokens", ["one output token"]),
        (["engine.kv_format=fp4"], "engine.kv_format", ["nearest: fp8"]),
        (["engine.token_buget=3"], "engine.token_buget", ["nearest: token_budget"]),
        (["engine.speculative_tokens=3", "engine.drafted_tokens=1"], "engine", ["more than drafted_tokens 1 + 1"]),
        (["engine.two_batch_overlap=true", "instance={gpus: 32}"], "engine.two_batch_overlap", ["exchanges"]),
        (["instance.expert=48"], "instance.expert", ["256 experts", "allowed: 1, 2, 4, 8, 16, 32", "nearest: 32"]),
        (["placement.redundant_experts=5"], "placement.redundant_experts", ["261 slots", "nearest: 0, 32"]),
        (["placement.strategy=co-activation"], "placement.strategy", ["tokens' choices", "allowed: contiguous"]),
        (["placement.strategy=groups", "model=gpt-oss-120b"], "placement.strategy", ["groups needs"]),
        (["instance.expert_tensor=2"], "instance.expert_tensor", ["leave 1, not 2", "auto"]),
        (["instance.tensor=3"], "instance.tensor", ["do not divide by 3"]),
        (["instance.attention_data_parallel=3"], "instance.attention_data_parallel", ["leave 32, not 3", "auto"]),
        (["instance.pipeline=64", "cluster.gpus=128"], "instance.tensor", ["32 GPUs do not divide"]),
        (["instance=null"], "instance", ["is required", "{gpus: 8, tensor: 8}"]),
        ([APART], "instance", ["both given"]),
        (["instance=null", APART, "workload.kind=decode"], "disaggregated", ["needs workload.kind serving"]),
        (["instance=null", APART, "cluster.gpus=64"], "cluster.gpus", ["2 x 32 + 1 x 32 = 96", "nearest: 96"]),
        (["cluster.gpus=100"], "cluster.gpus", ["no whole number of instances of 32", "nearest: 96"]),
        (["model=llama-3.1-8b"], "instance.expert", ["no experts", "allowed: 1"]),
        (["model=t5-moe"], "model", ["unknown"]),
        (["dispatcher=deepep-x"], "dispatcher.prefill", ["unknown dispatcher", "deepep-normal"]),
        (["dispatcher.decode=one-sided-nvl"], "dispatcher.decode", ["one NVLink domain"]),
        (["precision.experts=nvfp4"], "precision.experts", ["no nvfp4 rate", "allowed: bf16"]),
        (["precision.gradients=fp32"], "precision.gradients", ["unknown key"]),
        (["parallelism.tensor=4"], "parallelism", ["unknown key"]),
        (["routing.capacity={factor: 1.0}"], "routing.capacity", ["allowed: dropless"]),
        (["workload.arrivals={kind: trace, path: nowhere.csv}"], "workload.arrivals.path", ["cannot read nowhere.csv"]),
        (["workload.arrivals={kind: trace, path: log.txt}"], "workload.arrivals.path", [".csv, .parquet, .jsonl"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_where_it_is(settings: list[str], where: str, words: list[str]) -> None:
    found = complaints(*settings)
    assert where in found, found
    for word in words:
        assert word in found[where]


def test_several_mistakes_are_told_together() -> None:
    assert set(complaints("instance.tensor=3", "cluster.gpus=100", "engine.max_requests=0")) >= {
        "instance.tensor", "cluster.gpus", "engine.max_requests",
    }  # fmt: skip


def test_a_trace_gives_the_lengths_and_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("timestamp,input_tokens,output_tokens\n0,10,5\n1,20,7\n", encoding="utf-8")
    base = {key: value for key, value in BASE.items() if key != "workload"}
    scenario = tmp_path / "traced.yaml"
    work = {"kind": "serving", "arrivals": {"kind": "trace", "path": "requests.csv"}}
    scenario.write_text(json.dumps({**base, "workload": work}), encoding="utf-8")
    found = load_serving(scenario)
    digest = found.workload.arrivals.digest
    assert digest is not None
    assert len(digest) == 64
    assert found.name == "traced"
    (tmp_path / "requests.csv").write_text("timestamp,input_tokens,output_tokens\n0,11,5\n", encoding="utf-8")
    assert load_serving(scenario).key != found.key
    with pytest.raises(ScenarioError, match="not the file that this scenario was made with"):
        moesim.load(found.document())
    with pytest.raises(ScenarioError, match="the trace says how long"):
        load_serving(scenario, ["workload.input_tokens=5"])


def test_lengths_have_the_moments_they_state() -> None:
    law = LengthsSpec(mean=1000, deviation=500)
    location, scale = law.log_normal
    assert (law.average, law.variance) == (1000, 250000)
    assert pytest.approx(1000) == 2.718281828459045 ** (location + scale**2 / 2)
    even = LengthsSpec(low=100, high=300)
    assert (even.average, even.variance, even.longest()) == (200, pytest.approx(40000 / 12), 300)
    assert LengthsSpec(mean=64).longest() == pytest.approx(64)
    assert [EngineSpec(speculative_tokens=tokens).drafted for tokens in (1.0, 1.2, 2.0, 2.1)] == [0, 1, 1, 2]


def test_training_and_serving_are_not_taken_for_each_other() -> None:
    with pytest.raises(UserError, match=r"workload.kind is serving; allowed here: training"):
        load_training(BASE)
    training = {"model": "olmoe-1b-7b", "cluster": {"gpu": "h100-sxm", "gpus": 8}, "workload": {"global_batch": 8}}
    assert isinstance(moesim.load(training), moesim.Scenario)
    with pytest.raises(UserError, match="kind is training; allowed here: prefill, decode, serving"):
        load_serving({**training, "workload": {"kind": "training", "global_batch": 8}})


def test_the_verbs_show_and_check(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(BASE), encoding="utf-8")
    run = CliRunner()
    shown = run.invoke(app, ["show", str(path), "--json"])
    assert json.loads(shown.stdout)["engine"]["token_budget"] == 8192
    fits = run.invoke(app, ["check", str(path)])
    assert fits.exit_code == 0
    assert "no problems; 3 mixed instances of 32 GPUs" in fits.stdout
    small = ["--set", "cluster.gpus=4", "--set", "instance={gpus: 4, expert: 4}"]
    said = json.loads(run.invoke(app, ["check", str(path), "--json", *small]).stdout)
    assert "memory" in said["infeasible"]
    assert "weights_experts" in said["infeasible"]
    wrong = json.loads(run.invoke(app, ["check", str(path), "--json", "--set", "instance.expert=48"]).stdout)
    assert wrong["problems"][0]["where"] == "instance.expert"


def test_a_number_as_yaml_reads_it_is_a_number() -> None:
    assert load("workload.input_tokens=1e3").workload.input_tokens == LengthsSpec(mean=1000.0)
    assert "at most 16777216" in complaints("workload.input_tokens=1e9")["workload.input_tokens.mean"]
    assert "got 'many'" in complaints("workload.input_tokens=many")["workload.input_tokens"]


def test_the_cost_of_drafting_is_stated_where_something_drafts_it() -> None:
    plain = ("model=mixtral-8x7b", "precision={}")
    assert (
        "nothing is drafted"
        in complaints(*plain, "engine.draft_cost=0.05", "instance.expert=8", "instance.gpus=8")["engine.draft_cost"]
    )
    own = complaints("engine.speculative_tokens=2", "engine.draft_cost=0.05")
    assert "multi-token-prediction layer" in own["engine.draft_cost"]
