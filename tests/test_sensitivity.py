"""Which input moves the answer: ranges as users say them, one input at a time, and Sobol indices against theory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sweep_fixture import OLMOE, SMALL

import moesim
from moesim import catalog
from moesim.columns import SUMMARY
from moesim.errors import InfeasibleError, ScenarioError, UserError
from moesim.specs.sweep import Range
from moesim.step.stack import time_factor
from moesim.sweeps import sobol
from moesim.sweeps.ranges import read_range
from moesim.sweeps.sensitivity import ask
from moesim.sweeps.sensitivity_inputs import inputs_of

SCENARIOS = sorted(OLMOE.parent.glob("*.yaml"))
LINKS = {"cluster.gpu.bf16": "+-10%", "cluster.scale_up_bandwidth": "225..450 GB/s", "routing.load": None}
PRICED = {
    **SMALL,
    "workload": {**SMALL["workload"], "total_tokens": "1B"},
    "prices": {"gpu_hour": 2.5, "electricity": 0.6},
}
# A GPU-hour of an H100 is 0.7 kWh: cost = hours x (rent + 0.7 x electricity), whatever stands still being idle.
ADDITIVE = {
    "prices.gpu_hour": "2..3 $/h",
    "prices.electricity": "0.1..1.1 $/kWh",
    "prices.idle_power_share": (0.1, 0.3),
}


def step_time(*settings: str, source: Any = SMALL) -> float:
    return moesim.estimate(moesim.load(source, settings)).summary["step_time"].value


@pytest.mark.parametrize(
    ("wanted", "base", "unit", "kind", "told"),
    [
        ("200..800 Gb/s", 50e9, "B/s", Range(low=25e9, high=100e9), "B/s"),
        ("2 us .. 0.01 ms", None, "", Range(low=2e-6, high=1e-5), "s"),
        ("+-20%", 50.0, "", Range(low=40.0, high=60.0), ""),
        ("1..2", 1.25, "", Range(low=1.0, high=2.0), ""),
        ("1..4", 2, "", Range(low=1, high=4), ""),
        ("10%..30%", 0.15, "", Range(low=0.1, high=0.3), ""),
        ((1, 4), 2.0, "", Range(low=1.0, high=4.0), ""),
        ({"low": 1.0, "high": 4.0, "log": True}, 2.0, "", Range(low=1.0, high=4.0, log=True), ""),
        ("4,1,2", 1, "", (1, 2, 4), ""),
        ([8, 16, 16], 8, "", (8, 16), ""),
        ("2..4 $/h", 2.5, "$/h", Range(low=2.0, high=4.0), "$/h"),
    ],
)
def test_ranges_as_users_say_them(wanted: Any, base: float | None, unit: str, kind: Any, told: str) -> None:
    found, shown = read_range("a.b", wanted, base, unit)
    assert (found, shown) == (kind, told)
    if isinstance(found, Range):
        assert type(found.low) is type(kind.low)


@pytest.mark.parametrize(
    ("wanted", "base", "message"),
    [
        ("5", None, "a.b: .*is no range; write LOW"),
        ("3..1", None, "a.b: .*is not below"),
        ("1 GB/s..3 s", None, "no unit in common"),
        ("1 us..soon", None, "no unit in common"),
        ("+-20%", None, "no value above 0 to go around"),
        ("1.2..1.4", 1, "no two whole numbers"),
        ({"low": 1, "hihg": 2}, None, "hihg"),
    ],
)
def test_what_is_no_range_says_why(wanted: Any, base: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_range("a.b", wanted, base, "")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_inputs_that_apply_hold_the_scenarios_own_value(path: Path) -> None:
    scenario = moesim.load(path)
    found = {one.field: one for one in inputs_of(scenario, "cost", None)}
    assert {"cluster.gpu.bf16", "cluster.gpu.memory_bandwidth", "stack"} <= set(found)
    assert ("cluster.gpu.fp8" in found) == ("fp8" in scenario.precision.compute)
    assert ("cluster.nic_bandwidth" in found) == (
        scenario.cluster.domains > 1 and scenario.cluster.fabric.kind != "torus"
    )
    assert ("routing.capacity.factor" in found) == (scenario.routing.capacity != "dropless")
    recorded = scenario.routing.load.trace or scenario.routing.load.fitted
    assert ("routing.load" in found) == (scenario.model.is_moe and not recorded)
    for one in found.values():
        assert one.base is not None
        assert one.ends[0] <= one.base <= one.ends[1]
        assert one.ends[0] < one.ends[1]
        assert one.why


def test_the_price_is_an_input_of_the_cost_alone() -> None:
    scenario = moesim.load(PRICED)
    assert "prices.gpu_hour" in {one.field for one in inputs_of(scenario, "cost", None)}
    assert "prices.gpu_hour" not in {one.field for one in inputs_of(scenario, "step_time", None)}


def test_every_end_is_what_estimate_says_there() -> None:
    found = moesim.sensitivity(SMALL, over=LINKS)
    rows = found.table.set_index("field")
    base = step_time()
    assert found.base.value == base
    wide = rows.loc["cluster.scale_up_bandwidth"]
    assert wide["at_low"] == step_time("cluster.scale_up_bandwidth=225 GB/s") > wide["at_high"] == base
    quick = rows.loc["cluster.gpu.bf16"]
    assert quick["at_low"] == pytest.approx(step_time("cluster.gpu.bf16=890.1 TFLOP/s"), rel=1e-12)
    assert quick["at_high"] == pytest.approx(step_time("cluster.gpu.bf16=1087.9 TFLOP/s"), rel=1e-12)
    load = catalog.load("profiles", "olmoe-like")
    assert isinstance(load.log_normal, tuple)
    law = [1.5 * size for size in load.log_normal]
    settings = (f"routing.load.log_normal={law}", f"routing.load.sequence_tilt={1.5 * load.sequence_tilt}")
    assert rows.loc["routing.load", "at_high"] == pytest.approx(step_time(*settings), rel=1e-12)
    assert rows.loc["routing.load", "at_high"] > base
    for row in rows.itertuples():
        assert row.swing == max(row.at_low, row.at_high, base) - min(row.at_low, row.at_high, base)
    assert list(found.table["swing"]) == sorted(found.table["swing"], reverse=True)


def test_an_even_load_goes_to_a_balanced_one() -> None:
    even = {**SMALL, "routing": {"load": "uniform"}}
    row = moesim.sensitivity(even, over={"routing.load": None}).table.iloc[0]
    assert row["at_low"] == step_time(source=even)
    assert row["at_high"] == pytest.approx(step_time("routing.load=aux-loss-balanced"), rel=1e-12)


def test_the_stack_is_moved_as_a_calibration_would(tmp_path: Path) -> None:
    row = moesim.sensitivity(SMALL, over={"stack": "0.9..1.3"}).table.iloc[0]
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"stacks": {"time_factor": {"megatron-bridge-26.02": 1.3 * time_factor("auto", None)}}})
    )
    assert row["at_high"] == pytest.approx(step_time(f"cluster.calibration={path}"), rel=1e-9)
    assert row["at_low"] < step_time() < row["at_high"]


def test_the_stack_keeps_what_the_user_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"training-compute": {"grouped_gemm": 0.5}, "stacks": {"time_factor": {"ours": 1.5}}})
    )
    mine = {**SMALL, "stack": "ours", "cluster": {**SMALL["cluster"], "calibration": str(path)}}
    row = moesim.sensitivity(mine, over={"stack": (1.0, 2.0)}).table.iloc[0]
    assert row["at_low"] == pytest.approx(step_time(source=mine), rel=1e-12)
    path.write_text(path.read_text().replace("1.5", "3.0"))
    assert row["at_high"] == pytest.approx(step_time(source=mine), rel=1e-9)


def test_the_usual_range_of_the_stack_is_the_one_stated_with_the_answer() -> None:
    scenario = moesim.load(OLMOE.parent / "dense-100b-512-h100.yaml", ["stack=megatron-bridge-26.02"])
    quantity = moesim.estimate(scenario).summary["step_time"]
    row = moesim.sensitivity(scenario, over={"stack": None}).table.iloc[0]
    assert row["at_low"] == pytest.approx(quantity.low, rel=0.01)
    assert row["at_high"] == pytest.approx(quantity.high, rel=0.01)


def test_an_end_without_an_answer_is_a_row_with_its_reason() -> None:
    over = {"workload.micro_batch": [1, 3, 3.0], "workload.sequence_length": (2048, 1 << 20), **LINKS}
    found = moesim.sensitivity(SMALL, over=over)
    rows = found.table.set_index("field")
    assert "high end illegal: workload.global_batch" in rows.loc["workload.micro_batch", "reason"]
    assert "high end infeasible" in rows.loc["workload.sequence_length", "reason"]
    assert pd.isna(rows.loc["workload.micro_batch", "at_high"])
    assert pd.isna(rows.loc["workload.micro_batch", "swing"])
    assert set(found.table["field"].iloc[-2:]) == {"workload.micro_batch", "workload.sequence_length"}
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "step_tme"}, UserError, "unknown metric 'step_tme'; nearest: step_time"),
        ({"metric": "cost"}, UserError, "has no cost; it needs workload.total_tokens and prices.gpu_hour"),
        ({"method": "morris"}, UserError, "unknown method 'morris'; allowed: tornado, sobol"),
        ({"method": "sobol", "samples": 100}, UserError, "power of two"),
        ({"method": "sobol", "over": {"stack": None}}, UserError, "give two or more"),
        ({"over": {}}, UserError, "names no field"),
        ({"over": {"cluster.gpus": None}}, UserError, "give its range as cluster.gpus=LOW..HIGH"),
        ({"over": {"model": (1, 2)}}, UserError, "model is no number"),
        ({"over": {"cluster.nic_bandwith": (1e9, 2e9)}}, ScenarioError, "unknown key; nearest: nic_bandwidth"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moesim.sensitivity(SMALL, **options)


def test_a_scenario_that_does_not_fit_has_no_sensitivity() -> None:
    with pytest.raises(InfeasibleError, match="does not fit in memory"):
        moesim.sensitivity({**SMALL, "workload": {"sequence_length": 1 << 20, "global_batch": 64}})


def ishigami(shares: np.ndarray) -> np.ndarray:
    """Ishigami's function on 0 to 1, and a fourth input that it does not look at."""
    x = (2.0 * shares - 1.0) * np.pi
    return np.asarray(np.sin(x[:, 0]) * (1.0 + 0.1 * x[:, 2] ** 4) + 7.0 * np.sin(x[:, 1]) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_indices_of_ishigamis_function_are_the_analytic_ones(seed: int) -> None:
    fourth, eighth = 0.1 * np.pi**4 / 5.0, 0.01 * np.pi**8
    alone, other, mixed = 0.5 * (1.0 + fourth) ** 2, 49.0 / 8.0, eighth * (1.0 / 18.0 - 1.0 / 50.0)
    variance = alone + other + mixed
    expected = np.array([[alone, other, 0.0, 0.0], [alone + mixed, other, mixed, 0.0]]) / variance
    samples = 1024
    found = sobol.indices(ishigami(sobol.design(4, samples, seed)), samples, seed)
    for order, wanted in zip(found, expected, strict=True):
        assert [index.value for index in order] == pytest.approx(wanted, abs=0.04)
        assert all(index.low <= index.value <= index.high for index in order)
        assert sum(index.low <= share <= index.high for index, share in zip(order, wanted, strict=True)) >= 3
        assert order[3] == (0.0, 0.0, 0.0)


def test_indices_follow_the_seed_and_nothing_else() -> None:
    first, again, other = (sobol.indices(ishigami(sobol.design(3, 64, seed)), 64, seed) for seed in (5, 5, 6))
    assert first == again != other


def test_nothing_moves_an_answer_that_is_always_the_same() -> None:
    alone, total = sobol.indices(np.full(5 * 16, 0.1), 16, 0)
    assert alone == total == [(0.0, 0.0, 0.0)] * 3


@pytest.fixture(scope="module")
def additive() -> Any:
    return moesim.sensitivity(PRICED, over=ADDITIVE, metric="cost", method="sobol", samples=64, seed=1, workers=0)


def test_an_additive_answer_has_the_shares_of_theory_and_the_order_of_the_tornado(additive: Any) -> None:
    rows = additive.table.set_index("field")
    assert list(rows.index) == list(ADDITIVE)
    assert list(rows["swing"]) == sorted(rows["swing"], reverse=True)
    shares = np.array([1.0, 0.7**2, 0.0]) / 1.49
    for name in ("first", "total"):
        assert np.asarray(rows[name]) == pytest.approx(shares, abs=0.06)
        assert (rows[f"{name}_low"] <= shares + 1e-9).all()
        assert (rows[f"{name}_high"] >= shares - 1e-9).all()
    assert tuple(rows.loc["prices.idle_power_share", ["first", "total"]]) == (0.0, 0.0)


def test_workers_and_runs_do_not_change_an_index() -> None:
    over = {"cluster.gpu.bf16": None, "stack": "0.9..1.1"}
    first, again, other = (
        moesim.sensitivity(SMALL, over=over, method="sobol", samples=8, seed=seed, workers=workers).as_dict()
        for seed, workers in ((1, 0), (1, 2), (2, 0))
    )
    assert first == again != other


def test_usual_ranges_end_where_answers_do_and_stated_ones_are_refused() -> None:
    tight = {**SMALL, "workload": {"sequence_length": 16384, "global_batch": 64, "micro_batch": 1}}
    alone = moesim.sensitivity(tight, over={"workload.micro_batch": None})
    assert "infeasible" in alone.table["reason"].item()
    over: dict[str, Any] = {"workload.micro_batch": None, "cluster.gpu.bf16": None, "cluster.scale_up_bandwidth": None}
    found = moesim.sensitivity(tight, over=over, method="sobol", samples=8)
    assert any("micro-batch does not go to 2, which is infeasible" in note for note in found.notes)
    assert found.table.set_index("field")["total"].notna().to_dict() == {
        "cluster.gpu.bf16": True,
        "cluster.scale_up_bandwidth": True,
        "workload.micro_batch": False,
    }
    with pytest.raises(UserError, match=r"workload.micro_batch = 2 is infeasible.*state another range"):
        moesim.sensitivity(tight, over={**over, "workload.micro_batch": (1, 2)}, method="sobol", samples=8)


def test_the_cost_is_stated_before_anything_runs() -> None:
    question = ask(SMALL, LINKS, method="sobol", samples=64)
    assert question.estimates == 2 * 3 + 64 * (3 + 2)
    assert question.cost(2).startswith("326 estimates (2 x 3 inputs and 64 samples x (3 inputs + 2)), about ")


def test_pictures_show_every_input_in_the_order_of_the_table(additive: Any) -> None:
    bars = additive.charts.tornado().to_dict()
    assert bars["layer"][0]["encoding"]["y"]["sort"] == list(
        additive.table.sort_values("swing", ascending=False)["input"]
    )
    shares = additive.charts.sobol().to_dict()
    data = shares["layer"][0].get("data") or shares["data"]
    values = data["values"] if "values" in data else shares["datasets"][data["name"]]
    assert [row["value"] for row in values[::2]] == pytest.approx(list(additive.table["first"]), rel=1e-5)
    with pytest.raises(UserError, match="no Sobol indices"):
        moesim.sensitivity(SMALL, over={"stack": None}).charts.sobol()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesim", "sensitivity", str(OLMOE), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_the_verb_prints_a_table_of_80_columns_and_writes_files(tmp_path: Path) -> None:
    told = run("--out", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert "12 estimates (2 x 6 inputs)" in told.stderr
    assert max(map(len, told.stdout.splitlines())) <= 80
    assert "GPU bf16 rate        890.1–1088 TFLOP/s" in told.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sensitivity.json", "sensitivity.csv", "tornado.svg"}
    assert (tmp_path / "out" / "tornado.svg").read_text().startswith("<svg")
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    assert list(table["input"]) == [
        row["input"] for row in json.loads((tmp_path / "out" / "sensitivity.json").read_text())["inputs"]
    ]


def test_the_verb_takes_ranges_and_gives_json() -> None:
    told = run("--over", "stack=0.9..1.1", "--over", "workload.micro_batch=1,2,4", "--metric", "cost", "--json")
    found = json.loads(told.stdout)
    assert found["metric"] == "cost"
    assert found["base"]["unit"] == SUMMARY["cost"].unit
    assert {row["field"]: (row["low"], row["high"]) for row in found["inputs"]} == {
        "stack": (pytest.approx(0.9), pytest.approx(1.1)),
        "workload.micro_batch": (1, 4),
    }
    wrong = run("--over", "stack=0.9..1.1", "--over", "stack")
    assert wrong.returncode == 2
    assert "name every field once" in wrong.stderr
