"""Serving side by side: what makes an iteration longer, what keeps deployments from being alike, both kinds apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli import refused, run
from test_results_report import Page
from typer.testing import CliRunner

import moesim
from moesim.cli import app
from moesim.columns import SERVING
from moesim.errors import UserError
from moesim.network.dispatchers import DISPATCHERS
from moesim.results.compare import Comparison
from moesim.results.compare_report import FILES, page
from moesim.results.compare_table import print_comparison
from moesim.results.result import Result
from moesim.scenario.loading import load_serving
from moesim.serving.compare import FIRST
from moesim.serving.dispatchers import compare_serving_dispatchers
from moesim.serving.result import ServingResult

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "scenarios" / "olmoe-8-h100.yaml"
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "instance": {"gpus": 4, "expert": 4},
    "workload": {
        "kind": "serving",
        "requests": 60,
        "input_tokens": 256,
        "output_tokens": 16,
        "arrivals": {"kind": "poisson", "rate": 20},
    },
    "prices": {"gpu_hour": 2.0},
}
CLOSED = ("workload.arrivals={kind: closed, concurrency: 64}",)
DECODE = ("workload.kind=decode", *CLOSED)
APART = ("instance=null", "disaggregated={prefill: {gpus: 4, expert: 4}, decode: {gpus: 4, expert: 4}}")
SLOW = ("cluster.gpu={base: h100-sxm, memory_bandwidth: 1 TB/s}", "name=slow")


@cache
def answered(*settings: str, simulated: bool = False) -> ServingResult:
    scenario = load_serving(SMALL, settings)
    return moesim.simulate(scenario) if simulated else moesim.estimate(scenario)


def training() -> Result:
    return moesim.estimate(moesim.load(TRAINED))


def printed(comparison: Comparison) -> str:
    console = Console(width=80, color_system=None, markup=False)
    with console.capture() as captured:
        print_comparison(comparison, console)
    return captured.get()


def test_slower_memory_is_named_and_the_parts_add_up() -> None:
    base, slow = answered(*DECODE), answered(*DECODE, *SLOW)
    comparison = moesim.compare([base, slow])
    (why,) = comparison.explanations
    assert why.whole.name == "iteration"
    assert why.steps == (sum(base.breakdown.values()), sum(slow.breakdown.values()))
    assert sum(change for _, change in why.parts) == pytest.approx(why.steps[1] - why.steps[0])
    assert why.parts[0][0] == "experts"
    assert why.sentence.startswith("The iteration of slow is ")
    assert "longer than that of small: mostly by experts (+" in why.sentence
    assert "Arrivals set the pace" not in why.sentence
    assert {one.path for one in comparison.differences} == {"cluster.gpu.memory_bandwidth"}


def test_every_metric_of_serving_stands_side_by_side() -> None:
    pair = answered(*CLOSED), answered(*CLOSED, *SLOW)
    comparison = moesim.compare(pair)
    found = {metric.name: metric for metric in comparison.metrics}
    latencies = {"time_to_first_token", "time_per_output_token", "request_latency"}
    told = {name for name in pair[0].summary if f"{name}_mean" not in pair[0].summary}
    assert set(found) == told
    assert latencies <= {name.removesuffix("_mean") for name in found}
    first = [name for name in FIRST if name in found]
    assert [metric.name for metric in comparison.metrics][: len(first)] == first
    assert {"output_tokens_per_second_per_gpu", "kv_cache_use", "cost_per_million_output_tokens"} <= set(first)
    rate = found["output_tokens_per_second"]
    assert rate.unit == SERVING["output_tokens_per_second"].unit
    values = [result.summary["output_tokens_per_second"].value for result in pair]
    assert rate.ratios == (1.0, values[1] / values[0])
    assert rate.differences == (0.0, values[1] - values[0])
    assert rate.ratios[1] is not None
    assert rate.ratios[1] < 1.0


def test_json_is_strict_and_keeps_its_keys() -> None:
    pair = answered(*CLOSED), answered(*CLOSED, *SLOW)
    document = json.loads(json.dumps(moesim.compare(pair).as_dict(), allow_nan=False))
    assert list(document) == ["names", "differences", "metrics", "iterations"]
    (why,) = document["iterations"]
    assert list(why) == ["name", "of", "difference", "parts", "sentence", "steps", "bars", "operations"]
    assert (why["name"], why["of"]) == ("slow", "iteration")
    assert why["steps"][1] - why["steps"][0] == pytest.approx(why["difference"])
    assert document == json.loads(json.dumps(moesim.compare(pair).as_dict()))


def test_prompts_and_output_that_have_engines_of_their_own_are_explained_apart() -> None:
    base, slow = answered(*APART, simulated=True), answered(*APART, *SLOW, simulated=True)
    why = moesim.compare([base, slow, base]).explanations
    assert [(one.which, one.whole.name) for one in why] == [
        (1, "decode iteration"), (1, "prefill iteration"), (2, "decode iteration"), (2, "prefill iteration"),
    ]  # fmt: skip
    for one in why[:2]:
        phase = one.whole.name.split()[0]
        parts = {name: value for name, value in slow.breakdown.items() if name.startswith(phase)}
        assert one.steps[1] == pytest.approx(sum(parts.values()))
    assert "Arrivals set the pace of both" in why[0].sentence
    assert "Arrivals" not in why[1].sentence
    assert "same time in every part" in why[2].sentence
    told = printed(moesim.compare([base, slow]))
    assert "From decode iteration to decode iteration" in told
    assert "prefill iteration of slow" in told
    assert all(len(line) <= 80 for line in told.splitlines())


def cautions() -> Iterator[tuple[ServingResult, ServingResult, str]]:
    together = answered(*CLOSED)
    yield (
        together,
        answered(*CLOSED, *APART, "name=apart"),
        "Iterations of small hold prompts and output, those of apart",
    )
    yield together, answered("workload.arrivals={kind: closed, concurrency: 256}"), "An iteration holds "
    yield answered(), answered(simulated=True), "One is simulated and one estimated, so the roads differ too"
    yield answered(), answered(*SLOW), "Arrivals set the pace of both"
    yield together, answered(), "What limits small (1): concurrency; small (2): arrivals"
    yield together, replace(together, name="none", breakdown={}), "none has no iterations to compare."


@pytest.mark.parametrize("place", range(6))
def test_the_sentence_says_what_is_not_alike(place: int) -> None:
    base, other, said = list(cautions())[place]
    assert said in moesim.compare([base, other]).explanations[0].sentence


def test_a_deployment_without_a_steady_state_is_compared_all_the_same() -> None:
    flooded = load_serving(SMALL, ["workload.arrivals.rate=1000000", "name=flooded"])
    told = printed(moesim.compare([answered(), moesim.estimate(flooded, even_if_infeasible=True)]))
    assert "requests/s" in told


def test_a_mean_is_not_held_against_a_median() -> None:
    found = {one.name: one for one in moesim.compare([answered(), answered(simulated=True)]).metrics}
    if "request_latency_mean" not in found:
        pytest.skip("the roads tell no means yet")
    assert found["request_latency"].values[0] is None
    assert None not in found["request_latency_mean"].values


def test_training_and_serving_are_not_mixed() -> None:
    for results in ([training(), answered()], [answered(), training(), answered()]):
        with pytest.raises(UserError, match=r"olmoe-8-h100 is of training, small of serving: .* with its own kind"):
            moesim.compare(results)
    with pytest.raises(UserError, match="at least two"):
        moesim.compare([answered()])
    with pytest.raises(UserError, match="at least two"):
        moesim.compare([])
    assert moesim.compare([training(), training()]).explanations[0].whole.name == "step"


def test_the_page_holds_everything_and_is_the_same_again() -> None:
    pair = answered(*CLOSED), answered(*CLOSED, *SLOW)
    comparison = moesim.compare(pair)
    text = page(comparison)
    assert text == page(moesim.compare(pair))
    told = Page(text).text
    why = comparison.explanations[0]
    for words in (why.sentence, "Iteration", "Inputs that differ", "kv cache use", *(part for part, _ in why.parts)):
        assert words in told
    drawn = json.dumps(comparison.charts.waterfall().to_dict())
    assert "iteration of slow" in drawn
    assert "orange makes the iteration longer" in drawn
    assert "step" not in drawn.replace('"step": 26', "")


def asked(*arguments: object) -> Any:
    """What the verb prints, in this process."""
    told = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})
    if told.exception is not None:
        raise told.exception
    return told.stdout


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(json.dumps({**SMALL, **changes}), encoding="utf-8")
    return path


def test_the_verb_compares_scenarios_and_folders_and_refuses_a_mix(tmp_path: Path) -> None:
    path, folder = written(tmp_path), tmp_path / "folder"
    moesim.save(answered(simulated=True), folder)
    document = json.loads(asked(folder, path, "--simulate", "--out", tmp_path / "out", "--json"))
    assert document["names"] == ["small (1)", "small (2)"]
    assert document["metrics"]["time_per_output_token_p99"]["ratios"] == [1.0, 1.0]
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(FILES)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == document
    with pytest.raises(UserError, match="compare each with its own kind"):
        asked(TRAINED, folder)
    refused(run("compare", path, TRAINED), 2, "olmoe-8-h100 is of training, small of serving")


# Dispatchers


@cache
def under_dispatchers(*settings: str) -> Any:
    return compare_serving_dispatchers(load_serving(SMALL, settings))


@pytest.mark.parametrize("settings", [CLOSED, (), APART])
def test_each_choice_is_what_the_estimate_says_of_it(settings: tuple[str, ...]) -> None:
    found = under_dispatchers(*settings)
    answered_rows = [row for row in found.rows if row.result is not None]
    assert len(answered_rows) >= 3
    row = answered_rows[-1]
    told = [f"dispatcher.{phase}={name}" for phase, name in row.names.items()]
    assert row.result.summary == answered(*settings, *told).summary
    sign = -1 if settings == CLOSED else 1
    values = [sign * one.result.summary[found.metric].value for one in answered_rows]
    assert values == sorted(values)
    assert all((one.result is None) == (one.refusal is not None) for one in found.rows)
    assert found.chosen in [one.names for one in found.rows]
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_library_for_both_phases_or_its_kernels_by_phase() -> None:
    names = [tuple(row.names.values()) for row in under_dispatchers().rows]
    assert {(name, name) for name in DISPATCHERS} <= set(names)
    assert ("deepep-normal", "deepep-low-latency") in names
    assert len(names) == len(set(names)) <= len(DISPATCHERS) + 2


def test_engines_apart_may_each_have_the_best() -> None:
    found = under_dispatchers(*APART)
    best = {name: min(_values(found, name)) for name in ("time_to_first_token", "time_per_output_token")}
    assert any(
        row.result is not None and all(row.result.summary[name].value <= best[name] * (1 + 1e-9) for name in best)
        for row in found.rows
    )


def _values(found: Any, name: str) -> list[float]:
    return [row.result.summary[name].value for row in found.rows if row.result is not None]


def test_prefill_alone_has_one_phase() -> None:
    work = "workload={kind: prefill, requests: 60, input_tokens: 256, arrivals: {kind: poisson, rate: 20}}"
    found = under_dispatchers(work)
    assert found.metric == "time_to_first_token"
    assert {tuple(row.names) for row in found.rows} == {("prefill",)}
    assert all(row.as_dict()["decode"] is None for row in found.rows)


def test_kernels_that_are_asked_too_much_say_so() -> None:
    long = "workload.input_tokens=4096"
    rows = {row.label: row for row in under_dispatchers(long).rows}
    assert any("meant for decoding" in note for note in rows["deepep-low-latency"].notes)
    assert not rows["deepep-normal / deepep-low-latency"].notes


def test_the_verb_tells_dispatchers_of_serving(tmp_path: Path) -> None:
    cluster = {"gpu": "h100-sxm", "gpus": 16}
    path = written(tmp_path, cluster=cluster, instance={"gpus": 16, "expert": 16})
    told = asked("--dispatchers", path)
    assert all(len(line) <= 80 for line in told.splitlines())
    text = " ".join(told.split())
    assert "auto: " in text
    assert "all-gather-reduce-scatter" in text
    assert "one-sided-nvl: one-sided-nvl needs all ranks in one NVLink domain, this group spans 2" in text
    document = json.loads(asked("--dispatchers", path, "--json"))
    assert document["metric"] == "time_per_output_token"
    assert set(document["chosen"]) == {"prefill", "decode"}
    with pytest.raises(UserError, match=r"nothing to dispatch.*instance\.expert"):
        asked("--dispatchers", written(tmp_path, instance={"gpus": 4, "tensor": 4}))
    with pytest.raises(UserError, match="takes one scenario"):
        asked("--dispatchers", path, path)
    with pytest.raises(UserError, match="allowed here: training"):
        moesim.choose_dispatcher(load_serving(SMALL))  # type: ignore[arg-type]
