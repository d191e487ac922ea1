"""Sensitivities of serving: which inputs a deployment has, what each end is, coefficients that have no field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_sweeps_serving import SERVED
from typer.testing import CliRunner

import moesim
from moesim import catalog
from moesim.cli import app
from moesim.columns import SERVING
from moesim.errors import InfeasibleError, UserError
from moesim.results.chart_style import axis_unit
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving.headline import headline
from moesim.specs.sweep import Range
from moesim.sweeps.inputs import CALIBRATION
from moesim.sweeps.nouns import UNITS_OF
from moesim.sweeps.sensitivity_inputs import inputs_of
from moesim.sweeps.sensitivity_table import table
from moesim.terminal import console
from moesim.units import show

SHIPPED = sorted((Path(__file__).parents[1] / "scenarios" / "serving").glob("*.yaml"))
CLOSED: dict[str, Any] = {
    **SERVED,
    "workload": {**SERVED["workload"], "arrivals": {"kind": "closed", "concurrency": 64}},
    "prices": {"gpu_hour": 2.0},
}
RATES = {"cluster.gpu.memory_bandwidth": "+-30%", "cluster.scale_up_bandwidth": "225..450 GB/s"}
ARRIVALS = {
    "poisson": "workload.arrivals.rate",
    "bursty": "workload.arrivals.rate",
    "closed": "workload.arrivals.concurrency",
}


def estimated(metric: str, *settings: str, source: Any = CLOSED) -> float:
    return moesim.estimate(load_serving(source, settings)).summary[metric].value


def fields(source: Any, metric: str = "time_per_output_token", settings: tuple[str, ...] = ()) -> dict[str, Any]:
    return {one.field: one for one in inputs_of(load_serving(source, settings), metric, None)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_inputs_that_apply_hold_the_scenarios_own_value(path: Path) -> None:
    scenario = load_serving(path)
    found = fields(path, "cost_per_million_output_tokens")
    assert {"cluster.gpu.bf16", "cluster.gpu.memory_bandwidth", "engine.token_budget", "stack", "host"} <= set(found)
    assert ("cluster.gpu.fp8" in found) == ("fp8" in scenario.precision.compute)
    largest = max(pool.instance.gpus for pool in scenario.pools)
    assert ("cluster.scale_up_bandwidth" in found) == (largest > 1)
    spans = largest > scenario.cluster.gpus_per_domain or scenario.disaggregated is not None
    assert ("cluster.nic_bandwidth" in found) == (spans and scenario.cluster.fabric.kind != "none")
    assert ("placement.offload.host_bandwidth" in found) == (scenario.placement.offload is not None)
    assert ARRIVALS[scenario.workload.arrivals.kind] in found
    assert "workload.micro_batch" not in found
    assert ("prices.gpu_hour" in found) == (scenario.prices.gpu_hour is not None)
    for one in found.values():
        assert one.base is not None
        assert one.ends[0] <= one.base <= one.ends[1]
        assert one.ends[0] < one.ends[1]
        assert one.why


def test_counts_stay_counts_and_one_request_in_flight_is_not_halved() -> None:
    found = fields(CLOSED)
    assert found["engine.token_budget"].kind == Range(low=4096, high=16384)
    assert isinstance(found["engine.max_requests"].ends[0], int)
    alone = fields(CLOSED, settings=("workload.arrivals.concurrency=1",))
    assert alone["workload.arrivals.concurrency"].ends == (1, 2)


def test_phases_have_the_inputs_of_their_own_work() -> None:
    assert "engine.token_budget" not in fields(CLOSED, settings=("workload.kind=decode",))
    prefill = fields({**SERVED, "workload": {**SERVED["workload"], "kind": "prefill", "output_tokens": None}})
    assert "workload.output_tokens.mean" not in prefill
    assert "workload.input_tokens.mean" in prefill


@pytest.mark.parametrize(
    ("kind", "arrivals", "metric"),
    [
        ("serving", "closed", "output_tokens_per_second_per_gpu"),
        ("serving", "poisson", "time_per_output_token"),
        ("decode", "poisson", "time_per_output_token"),
        ("prefill", "closed", "input_tokens_per_second"),
        ("prefill", "poisson", "time_to_first_token"),
    ],
)
def test_the_metric_unless_stated_is_what_hardware_sets(kind: str, arrivals: str, metric: str) -> None:
    base = CLOSED if arrivals == "closed" else SERVED
    outputs = None if kind == "prefill" else 16
    source = {**base, "workload": {**base["workload"], "kind": kind, "output_tokens": outputs}}
    assert headline(load_serving(source)) == metric
    found = moesim.sensitivity(source, {"host": None}, workers=0)
    assert found.metric == metric
    assert found.base.unit == SERVING[metric].unit
    assert found.effects[0].swing > 0


def test_every_end_is_what_estimate_says_there() -> None:
    found = moesim.sensitivity(CLOSED, RATES, workers=0)
    rows, metric = found.table.set_index("field"), found.metric
    wide = rows.loc["cluster.scale_up_bandwidth"]
    assert found.base.value == estimated(metric) == wide["at_high"]
    assert wide["at_low"] == estimated(metric, "cluster.scale_up_bandwidth=225 GB/s")
    quick = rows.loc["cluster.gpu.memory_bandwidth"]
    assert quick["at_low"] < found.base.value < quick["at_high"]
    assert list(found.table["swing"]) == sorted(found.table["swing"], reverse=True)
    assert found.notes == ()
    json.dumps(found.as_dict(), allow_nan=False)


def calibrated(folder: Path, entries: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return f"cluster.calibration={path}"


def doubled(told: Any) -> Any:
    return {name: doubled(value) for name, value in told.items()} if isinstance(told, dict) else 2.0 * told


def test_stack_and_host_are_moved_as_a_calibration_would(tmp_path: Path) -> None:
    found = moesim.sensitivity(CLOSED, {"stack": "0.8..1.5", "host": "0.5..2"}, workers=0)
    rows, metric = found.table.set_index("field"), found.metric
    kernels = calibrated(tmp_path, {"serving": {"time_factor": {"kernels-alone": 1.5}}})
    assert rows.loc["stack", "at_high"] == pytest.approx(estimated(metric, kernels), rel=1e-9)
    slow = {"serving": {"host": doubled(catalog.calibration("serving")["host"])}}
    assert rows.loc["host", "at_high"] == pytest.approx(estimated(metric, calibrated(tmp_path, slow)), rel=1e-9)
    assert rows.loc["host", "at_high"] < found.base.value < rows.loc["host", "at_low"]


def test_both_are_moved_together_on_top_of_what_the_user_measured(tmp_path: Path) -> None:
    setting = calibrated(tmp_path, {"serving": {"time_factor": {"kernels-alone": 2.0}, "host": {"request": 3e-5}}})
    scenario: ServingScenario = load_serving(CLOSED, [setting])
    over = {"stack": (0.5, 1.0), "host": (0.5, 1.0)}
    found = moesim.sensitivity(scenario, over, method="sobol", samples=8, seed=1, workers=0)
    rows = found.table.set_index("field")
    assert rows["total"].notna().all()
    half = {"serving": {"time_factor": {"kernels-alone": 1.0}, "host": {"request": 3e-5}}}
    assert rows.loc["stack", "at_low"] == pytest.approx(estimated(found.metric, calibrated(tmp_path, half)), rel=1e-9)
    both = [one.setting(0.5) for one in inputs_of(scenario, found.metric, {"stack": None, "host": None})]
    assert all(list(setting) == [CALIBRATION] for setting in both)


def test_rates_that_arrivals_set_are_told() -> None:
    found = moesim.sensitivity(SERVED, RATES, "output_tokens_per_second", workers=0)
    assert [effect.swing for effect in found.effects] == [0.0, 0.0]
    assert "arrivals set output_tokens_per_second" in found.notes[0]
    assert "time_per_output_token tells what hardware moves" in found.notes[0]
    assert "arrivals" not in " ".join(moesim.sensitivity(CLOSED, RATES, "output_tokens_per_second", workers=0).notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metric": "step_time"},
            "step_time is told of training, scenario is of serving; serving has e.g. output_tokens",
        ),
        ({"metric": "time_to_frist_token"}, "unknown metric 'time_to_frist_token'; nearest: time_to_first_token"),
        ({"metric": "goodput_fraction"}, "has no goodput_fraction; the closed form has none"),
        ({"over": {"engine.tokenbudget": (1, 2)}}, "unknown key; nearest: token_budget"),
        ({"over": {"workload.micro_batch": None}}, r"give its range as workload\.micro_batch=LOW\.\.HIGH"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        moesim.sensitivity(CLOSED, **options)


def test_training_has_no_host_of_its_own_and_knows_its_metrics() -> None:
    trained = {
        "model": "olmoe-1b-7b", "cluster": {"gpu": "h100-sxm", "gpus": 8}, "parallelism": {"expert": 8},
        "workload": {"sequence_length": 2048, "global_batch": 64},
    }  # fmt: skip
    with pytest.raises(UserError, match="a training step has no host of its own"):
        moesim.sensitivity(trained, {"host": (0.5, 2.0)})
    with pytest.raises(UserError, match=r"time_to_first_token is told of serving, .* training has e\.g\. step_time"):
        moesim.sensitivity(trained, metric="time_to_first_token")


def test_what_cannot_be_served_has_no_sensitivity() -> None:
    flooded = {**SERVED, "workload": {**SERVED["workload"], "arrivals": {"kind": "poisson", "rate": 1e6}}}
    with pytest.raises(InfeasibleError, match="requests/s"):
        moesim.sensitivity(flooded)


def test_every_metric_has_an_axis() -> None:
    for name, unit in UNITS_OF.items():
        if unit == "fraction":  # axes of shares are in percent, whatever their size
            continue
        size, symbol = axis_unit([1234.5], unit)
        number, *shown = show(1234.5, unit).replace(",", "").split(maxsplit=1)
        assert (float(number) * size, symbol) == (pytest.approx(1234.5, rel=5e-3), "".join(shown)), name


def test_the_verb_prints_80_columns_and_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "served.yaml"
    path.write_text(json.dumps(CLOSED), encoding="utf-8")
    arguments = ["sensitivity", str(path), "--over", "cluster.gpu.memory_bandwidth=+-30%", "--over", "host"]
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["metric"] == "output_tokens_per_second_per_gpu"
    assert {row["field"] for row in document["inputs"]} == {"cluster.gpu.memory_bandwidth", "host"}
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"sensitivity.json", "sensitivity.csv", "tornado.svg"}
    assert "output tokens per second per GPU" in (tmp_path / "out" / "tornado.svg").read_text(encoding="utf-8")
    console().print(table(moesim.sensitivity(CLOSED, {"host": (0.01, 30.0), "stack": None}, workers=0)))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "e+" not in shown
