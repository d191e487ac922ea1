"""The verbs measure, calibrate and validate as a user meets them."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_cli import refused, run

import moesim
from moesim import catalog
from moesim.costs.compute import gemm_efficiency
from moesim.costs.kernels import gemm_time
from moesim.errors import UserError
from moesim.measurement import columns, plan
from moesim.validation.foretelling import foretell

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed (extra `trace`)")
SCENARIO = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "parallelism": {"expert": 8},
    "workload": {"global_batch": 64},
}


def slower_products(path: Path, factor: float) -> None:
    """Dense products of an H100 that take `factor` times what the catalog says."""
    gpu = moesim.load(SCENARIO).cluster.gpu
    sizes = [(m, n, k) for m in (64, 1024, 8192) for n in (1024, 4096, 16384) for k in (1024, 4096, 16384)]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["kind", "gpu", "software", "source", "time", "m", "n", "k", "dtype"])
        for m, n, k in sizes:
            seconds = factor * float(gemm_time(gpu, m, n, k, "bf16").seconds)
            table.writerow(["gemm", "h100-sxm", "made up 1.0", "a test", seconds, m, n, k, "bf16"])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    slower_products(folder / "products.csv", 1.3)
    told = run("calibrate", folder / "products.csv", "--out", folder / "own.yaml", "--json")
    assert told.returncode == 0, told.stderr
    entry = json.loads(told.stdout)["entries"]["kernel-gemm"]
    assert entry["residual"]["p90"] < 0.1
    return folder / "own.yaml"


def test_a_calibration_of_slower_products_makes_steps_longer(calibration: Path, tmp_path: Path) -> None:
    plain = moesim.load(SCENARIO)
    own = moesim.load({**SCENARIO, "cluster": {**SCENARIO["cluster"], "calibration": str(calibration)}})
    shares = [gemm_efficiency(s.cluster.gpu, "bf16", s.cluster.calibration) for s in (plain, own)]
    assert shares[1] == pytest.approx(shares[0] / 1.3, rel=0.1)
    steps = [moesim.estimate(scenario).summary["step_time"].value for scenario in (plain, own)]
    assert 1.02 * steps[0] < steps[1] < 1.3 * steps[0]
    # A path is relative to the scenario's folder, and shown.
    (tmp_path / "own.yaml").write_bytes(calibration.read_bytes())
    document = {**SCENARIO, "cluster": {**SCENARIO["cluster"], "calibration": "own.yaml"}}
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    shown = run("show", tmp_path / "scenario.yaml")
    assert str(tmp_path / "own.yaml") in shown.stdout


def test_validate_hears_of_the_calibration(calibration: Path, tmp_path: Path) -> None:
    case = {"id": "one", "kind": "gemm", "op": {"gpu": "h100-sxm", "m": 8192, "n": 4096, "k": 4096, "dtype": "bf16"}}
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump([{**case, "measured": {"time": 1e-3}}]), encoding="utf-8")
    found = [run("validate", path, "--json", *more) for more in ((), ("--calibration", calibration))]
    times = [json.loads(told.stdout)["cases"][0]["predicted"] for told in found]
    assert times[1] == pytest.approx(1.3 * times[0], rel=0.1)


def test_a_broken_tolerance_is_exit_code_1(tmp_path: Path) -> None:
    op = {"gpu": "h100-sxm", "ranks": 8, "ranks_per_domain": 8, "bytes": 16777216, "library": "nccl"}
    case = {"id": "nccl", "kind": "all_to_all", "op": op, "tolerance": 0.3}
    for seconds, code in ((75.7e-6, 0), (75.7e-5, 1)):
        path = tmp_path / f"{code}.yaml"
        path.write_text(yaml.safe_dump([{**case, "measured": {"time": seconds}}]), encoding="utf-8")
        told = run("validate", path)
        assert told.returncode == code, told.stderr
        assert ("stated tolerance 30 %" in told.stderr) == bool(code)
        assert "Errors by kind" in told.stdout


def test_the_shipped_facts_hold() -> None:
    told = run("validate", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert len(answer["cases"]) >= 500
    assert {"n", "median_ape", "mean_ape", "p90_ape", "bias", "rank_correlation"} <= set(answer["by_kind"]["gemm"])
    assert answer["broken"] == []


@needs_torch
def test_mistakes_get_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.yaml").write_text("question: nothing measured\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text("kind,gpu,time\ngemm,h100-sxm,-1\n", encoding="utf-8")
    refused(run("calibrate", tmp_path / "none.csv"), 2, "none.csv")
    refused(run("calibrate", tmp_path / "empty"), 2, "empty")
    refused(run("calibrate", tmp_path / "table.csv"), 2, "table.csv")
    refused(run("validate", tmp_path / "none.yaml"), 2, "none.yaml")
    refused(run("validate", tmp_path / "words.yaml"), 2, "words.yaml")
    refused(run("validate", "--calibration", tmp_path / "words.yaml"), 2, "question", "not a calibration")
    refused(run("measure", "gpu", tmp_path / "x.csv", "--preset", "smal"), 2, "smal", "small")
    refused(run("measure", "gpu", tmp_path / "x.csv", "--device", "cuda:9"), 2, "CUDA")
    refused(run("measure", "collectives", tmp_path / "x.csv"), 2, "torchrun")


@needs_torch
def test_measured_kernels_calibrate(tmp_path: Path) -> None:
    """The processor stands in for a GPU: its rows are read, but the catalog has no such GPU."""
    out = tmp_path / "cpu.csv"
    told = run("measure", "gpu", out, "--preset", "small", "--kinds", "gemm", "--seconds", "5", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"] >= 1
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["time"]) > 0 for row in rows)
    refused(run("calibrate", out, "--out", tmp_path / "cpu.yaml"), 2, "gpu")


def own_file(path: Path, entries: dict[str, object]) -> dict[str, object]:
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return {**SCENARIO, "cluster": {**SCENARIO["cluster"], "calibration": str(path)}}


def scaled_coefficients(entry: str, dtype: str, **factors: float) -> dict[str, object]:
    """The shipped Hopper set of a kernel law as that of this GPU, some of its numbers times a factor."""
    shipped = catalog.calibration(entry)["coefficients"]["hopper"][dtype]
    return {
        "coefficients": {"h100-sxm": {dtype: {**shipped, **{key: shipped[key] * by for key, by in factors.items()}}}}
    }


@pytest.mark.parametrize(
    ("metric", "entries"),
    [
        ("expert_compute_time", {"kernel-experts": ("bf16", {"compute": 0.5, "memory": 0.5, "row": 4.0})}),
        ("attention_time", {"kernel-attention": ("bf16", {"forward": 0.25})}),
        ("expert_compute_time", {"kernel-gemm": ("bf16", {"compute": 0.5})}),
    ],
)
def test_every_kernel_law_that_was_measured_moves_the_step(
    tmp_path: Path, metric: str, entries: dict[str, tuple[str, dict[str, float]]]
) -> None:
    file = {}
    for entry, (dtype, factors) in entries.items():
        file[entry] = scaled_coefficients(entry, dtype, **factors)
    plain = moesim.estimate(moesim.load(SCENARIO)).summary
    slower = moesim.estimate(moesim.load(own_file(tmp_path / "own.yaml", file)))
    assert slower.summary[metric].value > 1.1 * plain[metric].value
    assert slower.summary["step_time"].value > plain["step_time"].value
    assert any("own.yaml" in note for note in slower.notes)


def test_rings_that_were_measured_move_the_steps_collectives(tmp_path: Path) -> None:
    document = own_file(tmp_path / "own.yaml", {"network-nccl-domain": {"eta": 0.43}})
    layout = {"parallelism": {"expert": 8, "tensor": 2}}
    plain, slower = (moesim.estimate(moesim.load({**found, **layout})).summary for found in (SCENARIO, document))
    for metric in ("tensor_parallel_time", "data_parallel_time"):
        assert slower[metric].value > 1.3 * plain[metric].value, metric


def test_one_measured_step_calibrates_the_next(tmp_path: Path) -> None:
    """A layout that runs a fifth slower than predicted makes its neighbours' predictions slower, and none worse."""
    layouts = {
        "one": {"workload": {"global_batch": 64}},
        "other": {"workload": {"global_batch": 256}},
    }
    speeds = {
        name: moesim.estimate(moesim.load({**SCENARIO, **layout})).summary["tokens_per_second_per_gpu"].value
        for name, layout in layouts.items()
    }
    paths = {}
    for name, layout in layouts.items():
        measured = {"tokens_per_second_per_gpu": speeds[name] / 1.2}
        case = {"id": name, "kind": "train_step", "scenario": {**SCENARIO, **layout}, "measured": measured}
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump([case]), encoding="utf-8")
    moesim.calibrate([paths["one"]], tmp_path / "own.yaml")
    errors = [
        abs(moesim.validate([paths["other"]], calibration=own).cases[0].error or 0.0)
        for own in (None, tmp_path / "own.yaml")
    ]
    assert errors[0] == pytest.approx(0.2, rel=1e-6)
    assert errors[1] < 0.6 * errors[0]


def test_what_a_timing_run_will_find_is_written_down_first(tmp_path: Path) -> None:
    out = tmp_path / "h200.csv"
    told = run("measure", "predict", "h200-sxm", out)
    assert told.returncode == 0, told.stderr
    rows = pd.read_csv(out)
    assert len(rows) == len(plan.cases("gpu"))
    assert (rows["low"] < rows["predicted"]).all()
    assert (rows["predicted"] < rows["high"]).all()
    assert set(rows["basis"]) <= {"fitted", "paper", "datasheet", "derived", "assumed"}, "nothing of it is measured"
    # As a measured row of the same words is judged.
    one = rows[(rows["kind"] == "gemm") & (rows["dtype"] == "bf16")].iloc[7]
    row = {name: one[name] for name in ("kind", "gpu", "m", "n", "k", "dtype")} | {"time": 2 * one["predicted"]}
    measured = columns.write([row], tmp_path / "measured.csv")
    (case,) = moesim.validate([measured]).cases
    assert case.error == pytest.approx(-0.5, abs=1e-5)
    refused(run("calibrate", out), 2, "'time' is missing")


def test_predictions_of_no_gpu_or_no_such_cases_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    refused(run("measure", "predict", "h20-sxn", out, "--kinds", "launch"), 2, "h20-sxm")
    launches = plan.cases("gpu", ["launch"])
    with pytest.raises(UserError, match=r"ends in \.csv"):
        foretell("h20-sxm", launches).save(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no case was named"):
        foretell("h20-sxm", [])
    assert not list(tmp_path.iterdir())
