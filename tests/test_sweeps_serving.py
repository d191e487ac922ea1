"""Sweeps of serving scenarios: points and seeds, the metrics of serving, the same bytes whatever computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sweep_fixture import run

import moesim
from moesim.columns import SERVING, SUMMARY
from moesim.errors import UserError
from moesim.sweeps import charts
from moesim.sweeps.nouns import COLUMNS, UNITS_OF, metrics_of
from moesim.sweeps.result import Sweep

SERVED: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "instance": {"gpus": 4, "expert": 4},
    "workload": {
        "kind": "serving",
        "requests": 40,
        "input_tokens": 256,
        "output_tokens": 16,
        "arrivals": {"kind": "poisson", "rate": 20},
    },
}
OVER: dict[str, list[Any]] = {
    "workload.arrivals.rate": [5, 50, 10_000_000],
    "instance": [{"gpus": 4, "expert": 4}, {"gpus": 7}],
}


def test_points_and_seeds_have_the_metrics_of_serving(tmp_path: Path) -> None:
    found = moesim.sweep(SERVED, over=OVER, seeds=2, out=tmp_path, workers=0)
    assert found.noun == "serving"
    assert found.metrics == tuple(SERVING)
    assert found.counts == {"done": 4, "illegal": 6, "infeasible": 2}
    done = found.table[found.table["status"] == "done"]
    assert (done["time_to_first_token"] > 0).all()
    assert "requests/s" in found.failed.set_index("status").loc["infeasible", "reason"].iloc[0]
    rate = {**SERVED["workload"], "arrivals": {"kind": "poisson", "rate": 5}}
    alone = moesim.load({**SERVED, "simulation": {"seed": 1}, "routing": {"seed": 1}, "workload": rate})
    row = found.table[(found.table["workload.arrivals.rate"] == 5) & (found.table["seed"] == 1)].iloc[0]
    assert row["time_per_output_token"] == moesim.estimate(alone).summary["time_per_output_token"].value
    schema = pq.read_schema(tmp_path / "sweep.parquet")
    for name, column in SERVING.items():
        assert schema.field(name).metadata[b"meaning"].decode() == column.meaning
    assert Sweep.load(tmp_path).noun == "serving"


def test_simulated_points_give_the_same_bytes(tmp_path: Path) -> None:
    over = {"workload.arrivals.rate": [20, 100]}
    for workers in (0, 2):
        moesim.sweep(SERVED, over, 2, road="simulate", out=tmp_path / str(workers), workers=workers)
    alone, pool = ((tmp_path / name / "sweep.parquet").read_bytes() for name in ("0", "2"))
    assert alone == pool


def test_a_loaded_scenario_sweeps_as_its_document() -> None:
    over = {"workload.arrivals.rate": [5, 50]}
    loaded = moesim.sweep(moesim.load(SERVED), over, workers=0)
    assert loaded.table["key"].tolist() == moesim.sweep(SERVED, over, workers=0).table["key"].tolist()


def test_a_sweep_is_of_training_or_of_serving() -> None:
    """A point of the other kind is a row that says so: one table has one set of metrics."""
    trained = {"sequence_length": 2048, "global_batch": 64}
    bare = {key: part for key, part in SERVED.items() if key != "instance"}
    found = moesim.sweep(bare, [{"instance": {"gpus": 4, "expert": 4}}, {"workload": trained}], workers=0)
    assert found.counts == {"done": 1, "illegal": 1}
    assert found.failed["reason"].item() == "workload.kind: is of training, the sweep is of serving: sweep them apart"


def test_the_first_point_may_say_what_a_sweep_is_of() -> None:
    bare = {key: part for key, part in SERVED.items() if key != "workload"}
    assert moesim.sweep(bare, [{"workload": SERVED["workload"]}], workers=0).counts == {"done": 1}


def test_metrics_are_those_of_what_is_swept() -> None:
    assert metrics_of("serving", ("goodput_fraction",)) == ("goodput_fraction",)
    with pytest.raises(UserError, match="metrics: serving has no step_time"):
        metrics_of("serving", ("step_time",))
    with pytest.raises(UserError, match="metrics: serving has no step_time"):
        moesim.sweep({"scenario": SERVED, "seeds": 2, "metrics": ["step_time"]})
    for columns in COLUMNS.values():
        assert {name: UNITS_OF[name] for name in columns} == {name: column.unit for name, column in columns.items()}
    assert set(SUMMARY) & set(SERVING)


def test_the_command_shows_what_matters_in_serving(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(json.dumps({"question": "Which rate?", "scenario": SERVED, "grid": OVER}))
    told = run(path, "--workers", 0, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for word in ("time to first token", "time per output token", "gpus 4, expert 4", "2 done, 3 illegal, 1 infeasible"):
        assert word in told.stdout
    again = run(path, "--workers", 0, "--resume", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["reused"] == 3


def test_charts_know_the_metrics_of_serving() -> None:
    found = moesim.sweep(SERVED, {"workload.arrivals.rate": [5, 50, 100]}, workers=0)
    drawn = charts.lines(found, "time_per_output_token", "workload.arrivals.rate").to_dict()
    assert "time per output token over workload.arrivals.rate" in json.dumps(drawn)
