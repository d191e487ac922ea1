"""Sweeps: every point a row, whatever becomes of it; the same table whatever computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from sweep_fixture import OLMOE, SMALL

import moesim
from moesim import roads
from moesim.catalog.yaml_files import read_mapping
from moesim.columns import SUMMARY
from moesim.errors import FileError, ScenarioError, UserError
from moesim.sweeps.base import Base, base_of
from moesim.sweeps.result import Sweep
from moesim.sweeps.run import statement

SCENARIOS = sorted(OLMOE.parent.glob("*.yaml"))
OVER: dict[str, list[Any]] = {"workload.micro_batch": [1, 2], "routing.load": ["uniform", "olmoe-like"]}


def test_a_grid_has_a_row_for_every_combination_and_seed() -> None:
    found = moesim.sweep(SMALL, over=OVER, seeds=2)
    assert found.fields == tuple(OVER)
    expected = [(batch, load, seed) for batch in (1, 2) for load in OVER["routing.load"] for seed in (0, 1)]
    assert list(found.points.iloc[:, :3].itertuples(index=False, name=None)) == expected
    assert found.counts == {"done": 8}
    assert found.failed.empty
    assert found.table["key"].is_unique


def test_a_row_says_what_estimate_says() -> None:
    found = moesim.sweep(SMALL, over=OVER, seeds=[7])
    settings = ["workload.micro_batch=2", "routing.load=olmoe-like", "simulation.seed=7", "routing.seed=7"]
    result = moesim.estimate(moesim.load(SMALL, settings))
    row = found.table.iloc[3]
    assert row["seed"] == 7
    assert len(result.summary) > 20
    for name, quantity in result.summary.items():
        told = (row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_basis"])
        assert told == (quantity.value, quantity.low, quantity.high, quantity.basis)
    assert all(pd.isna(row[name]) for name in set(SUMMARY) - set(result.summary))


def test_a_simulated_point_says_what_simulate_says() -> None:
    found = moesim.sweep(SMALL, over=[{"workload.micro_batch": 1}], road="simulate", workers=0)
    scenario = moesim.load(SMALL, ["workload.micro_batch=1"])
    assert found.table["step_time"].item() == moesim.simulate(scenario).summary["step_time"].value
    assert found.table["key"].item() != moesim.sweep(SMALL, over=[{"workload.micro_batch": 1}]).table["key"].item()


def test_what_does_not_work_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = roads.estimate

    def broken(scenario: moesim.Scenario) -> moesim.Result:
        if scenario.workload.sequence_length == 4096:
            raise ZeroDivisionError("nobody expected this")
        return estimate(scenario)

    monkeypatch.setattr("moesim.roads.estimate", broken)
    points = [
        {"workload.micro_batch": 1},
        {"parallelism.expert": 3},
        {"workload.micro_batch": 64, "workload.sequence_length": 8192, "workload.global_batch": 512},
        {"workload.sequence_length": 4096},
    ]
    found = moesim.sweep(SMALL, over=points)
    assert found.table["status"].tolist() == ["done", "illegal", "infeasible", "failed"]
    reasons = found.table["reason"].tolist()
    assert reasons[0] == ""
    assert "64 experts" in reasons[1]
    assert "does not fit in memory" in reasons[2]
    assert "binding" in reasons[2]
    assert reasons[3] == "ZeroDivisionError: nobody expected this"
    assert found.failed.index.tolist() == [1, 2, 3]
    assert found.table["step_time"].notna().tolist() == [True, False, False, False]
    assert found.table["seed"].tolist() == [0, 0, 0, 0]
    assert any("1 points failed" in note for note in found.notes)


def test_points_of_the_same_content_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    estimate = roads.estimate

    def counted(scenario: moesim.Scenario) -> moesim.Result:
        asked.append(scenario.cluster.nic_bandwidth or 0.0)
        return estimate(scenario)

    monkeypatch.setattr("moesim.roads.estimate", counted)
    found = moesim.sweep(SMALL, over={"cluster.nic_bandwidth": ["400 Gb/s", 50e9, "50 GB/s", "200 Gb/s"]})
    assert asked == [50e9, 25e9]
    assert (found.computed, found.reused) == (2, 2)
    assert found.table["key"].nunique() == 2
    assert found.table["step_time"].notna().all()


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("cluster.gpuss", [8], "cluster.gpuss: unknown key; nearest: gpus"),
        ("clustr.gpus", [8], "clustr: unknown key; nearest: cluster"),
        ("model", ["olmoe-1b-7b", "mixtral-8x7"], "unknown model 'mixtral-8x7'; nearest: mixtral-8x7b"),
        ("cluster.gpu", ["h100"], "unknown gpu 'h100'"),
        ("routing.load", ["uniform", "uniformm"], "unknown profile 'uniformm'; nearest: uniform"),
        ("routing.router", ["nope"], "unknown router 'nope'"),
        ("dispatcher.kind", ["auto", "deepep"], "unknown dispatcher 'deepep'; nearest: deepep-normal"),
        ("schedule.kind", ["dualpip"], "'dualpip' is not known; nearest: dualpipe"),
        ("cluster.gpus", [8, "many"], "expected a whole number, got many"),
        ("a..b", [1], "not a field of the form a.b"),
    ],
)
def test_mistakes_that_no_point_mends_are_told_before_anything_runs(
    field: str, values: list[Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("moesim.roads.estimate", lambda scenario: pytest.fail("something ran"))
    with pytest.raises(ScenarioError) as caught:
        moesim.sweep(SMALL, over={"workload.micro_batch": [1, 2], field: values}, out=tmp_path / "out")
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_a_mistake_of_the_scenario_itself_is_told() -> None:
    with pytest.raises(ScenarioError, match="paralelism: unknown key; nearest: parallelism"):
        moesim.sweep({**SMALL, "paralelism": {}}, seeds=2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "nothing varies"),
        ({"grid": {"cluster.gpus": []}}, "cluster.gpus lists no value"),
        ({"list": []}, "0 points"),
        ({"grid": {"cluster.gpus": [8]}, "list": [{}]}, "gives grid and list"),
        ({"random": {"cluster.gpus": [8]}}, "points belongs to random"),
        ({"grid": {"cluster.gpus": [8]}, "points": 3}, "points belongs to random"),
        ({"random": {"cluster.gpus": {"low": 9, "high": 8}}, "points": 3}, "must be below"),
        ({"random": {"cluster.gpus": {"low": 0, "high": 8, "log": True}}, "points": 3}, "above 0 on a logarithmic"),
        ({"random": {"cluster.gpus": {"low": "8 GB", "high": "3 s"}}, "points": 3}, "no range of one unit"),
        ({"random": {"cluster.gpus": {"low": "1 B", "high": "3 B"}}, "points": 3}, "several things"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "all different"),
        ({"seeds": 2, "grid": {"routing.seed": [1]}}, "set by seeds already"),
        ({"seeds": 2, "metrics": ["step_tim"]}, "unknown metric 'step_tim'; nearest: step_time"),
        ({"seeds": 1000, "grid": {"cluster.gpus": list(range(1, 1002))}}, "1,001,000 points"),
        ({"seed": 2, "grid": {"cluster.gpus": [8]}}, "unknown key; nearest: seeds"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match="problem") as caught:
        moesim.sweep({"scenario": SMALL, **said})
    assert words in str(caught.value)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for options, words in (
        ({"executor": "ray"}, "unknown executor 'ray'; allowed: local, dask"),
        ({"address": "tcp://127.0.0.1:1"}, "add --executor dask"),
        ({"resume": True}, "needs the folder"),
        ({"workers": -1}, "workers must be 0 to 1024"),
    ):
        with pytest.raises(UserError, match=words):
            moesim.sweep(SMALL, seeds=2, **options)  # type: ignore[arg-type]
    path = tmp_path / "sweep.yaml"
    path.write_text(f"scenario: {OLMOE}\nseeds: 2\n")
    with pytest.raises(UserError, match="says itself what varies"):
        moesim.sweep(path, seeds=3)


def test_a_file_and_the_same_words_in_python_are_one_sweep(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(SMALL))
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"question": "Which?", "scenario": "base.yaml", "grid": OVER, "seeds": 2}))
    from_file = moesim.sweep(path)
    from_python = moesim.sweep(tmp_path / "base.yaml", over=OVER, seeds=2)
    assert from_file.question == "Which?"
    pd.testing.assert_frame_equal(from_file.table, from_python.table)
    inline = moesim.sweep({"scenario": SMALL, "grid": OVER, "seeds": [0, 1]})
    assert inline.table["key"].tolist() == from_file.table["key"].tolist()


@pytest.mark.parametrize("name", ["deepseek-v3-2048-h800", "mixtral-8x7b-64-h100", "qwen3-235b-256-gb200"])
def test_a_loaded_scenario_varies_as_its_file_does(name: str) -> None:
    """What follows from the GPU still follows when the GPU changes, and a changed number is the user's own."""
    document = read_mapping(OLMOE.with_name(f"{name}.yaml"))
    del document["cluster"]["fabric"]
    from_file, from_scenario = base_of(document), base_of(moesim.load(document))
    for values in (
        {"cluster.gpu": "b200-sxm"},
        {"cluster.gpu": "gb200-nvl72"},
        {"cluster.gpu.memory": "100 GB"},
        {"cluster.fabric.oversubscription": 2},
        {"model.top_k": 3},
        {"routing.load": "uniform"},
    ):
        assert _answer(from_file, values) == _answer(from_scenario, values)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_names_looked_up_once_give_the_same_scenarios(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(path)
    points: list[dict[str, Any]] = [
        {"workload.global_batch": 2 * base.at({}).workload.global_batch},
        {"cluster.gpus": 2 * base.at({}).cluster.gpus, "prices.gpu_hour": 3.0},
        {"cluster.nic_bandwidth": "200 Gb/s", "routing.capacity": "dropless", "simulation.jitter": 0.1},
        {"overlap.data_parallel": False, "recompute": "full", "parallelism.tensor": 3},
    ]
    for values in points:
        prepared = base.prepared(values)
        assert prepared is not base
        assert _answer(prepared, values) == _answer(base, values)
    monkeypatch.chdir(path.parent)
    beside = base_of(Path(path.name))
    assert _answer(beside.prepared(points[0]), points[0]) == _answer(beside, points[0])
    for field in ("model", "model.top_k", "cluster", "cluster.gpu", "cluster.fabric.oversubscription", "stack"):
        assert base.prepared([field, "cluster.gpus"]) is base


def _answer(base: Base, values: dict[str, Any]) -> str:
    """The scenario's content, or its problems."""
    try:
        return base.at(values, 3).key
    except ScenarioError as error:
        return "; ".join(map(str, error.problems))


def test_a_scenario_object_sweeps_as_its_file(tmp_path: Path) -> None:
    over = {"cluster.gpu": ["h100-sxm", "h200-sxm"]}
    from_file = moesim.sweep(OLMOE, over=over, seeds=2)
    from_object = moesim.sweep(moesim.load(OLMOE), over=over, seeds=2)
    pd.testing.assert_frame_equal(from_file.table, from_object.table)


def test_the_parquet_has_plain_types_units_and_no_time_of_day(tmp_path: Path) -> None:
    over: dict[str, list[Any]] = {
        "cluster.gpus": [8, 16],
        "overlap.data_parallel": [True, False],
        "routing.capacity": ["dropless", {"factor": 1.25}],
        "simulation.jitter": [0, 0.5],
        "prices.gpu_hour": [None, 2.5],
    }
    moesim.sweep(SMALL, over=over, out=tmp_path)
    schema = pq.read_schema(tmp_path / "sweep.parquet")
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    assert set(kinds.values()) == {"int64", "double", "bool", "string"}
    assert [kinds[name] for name in over] == ["int64", "bool", "string", "double", "double"]
    for name, column in SUMMARY.items():
        for part in ("", "_low", "_high"):
            assert schema.field(name + part).metadata[b"unit"].decode() == column.unit
        assert schema.field(name).metadata[b"meaning"].decode() == column.meaning
        assert kinds[f"{name}_basis"] == "string"
    frame = pd.read_parquet(tmp_path / "sweep.parquet")
    assert len(frame) == 32
    assert set(frame["routing.capacity"]) == {"dropless", '{"factor": 1.25}'}
    assert json.loads(schema.metadata[b"moesim_sweep"])["fields"] == list(over)


@pytest.mark.parametrize("library", ["polars", "duckdb"])
def test_other_libraries_read_the_parquet(library: str, tmp_path: Path) -> None:
    reader = pytest.importorskip(library, reason=f"{library} is not installed")
    found = moesim.sweep(SMALL, over=OVER, out=tmp_path)
    path = str(tmp_path / "sweep.parquet")
    if library == "polars":
        times = reader.read_parquet(path)["step_time"].to_list()
    else:
        times = [row[0] for row in reader.sql(f"select step_time from '{path}'").fetchall()]
    assert times == found.table["step_time"].tolist()


def test_metrics_can_be_chosen(tmp_path: Path) -> None:
    found = moesim.sweep({"scenario": SMALL, "seeds": 2, "metrics": ["step_time", "cost"]})
    ranges = [name + part for name in ("step_time", "cost") for part in ("", "_low", "_high", "_basis")]
    assert found.table.columns.tolist() == ["seed", "status", "reason", "key", *ranges]


def test_a_saved_sweep_reads_back(tmp_path: Path) -> None:
    found = moesim.sweep(SMALL, over=OVER)
    assert found.save(tmp_path / "new") == tmp_path / "new" / "sweep.parquet"
    again = Sweep.load(tmp_path / "new")
    pd.testing.assert_frame_equal(again.table, found.table)
    assert (again.fields, again.metrics, again.counts) == (found.fields, found.metrics, found.counts)
    data = (tmp_path / "new" / "sweep.parquet").read_bytes()
    (tmp_path / "new" / "sweep.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileError, match=r"cannot read .*sweep\.parquet: it is no sound"):
        Sweep.load(tmp_path / "new")
    with pytest.raises(FileError, match="nowhere"):
        Sweep.load(tmp_path / "nowhere")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "new" / "sweep.parquet")
    with pytest.raises(FileError, match="not the table of a sweep"):
        Sweep.load(tmp_path / "new")


def test_progress_says_share_and_seconds_left() -> None:
    heard: list[tuple[str, float, float | None]] = []
    moesim.sweep(SMALL, over={**OVER, "parallelism.expert": [3, 8]}, progress=lambda *told: heard.append(told))
    shares = [share for _, share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    left = [seconds for _, _, seconds in heard if seconds is not None]
    assert left[0] > 0
    assert left[-1] == 0


def test_a_calibration_that_changes_makes_another_answer(tmp_path: Path) -> None:
    calibration = tmp_path / "mine.yaml"
    over = {"cluster.calibration": [str(calibration)]}
    calibration.write_text("sources: {'': {basis: measured, where: here, date: '2026-01-01'}}\n")
    before = moesim.sweep(SMALL, over=over, workers=0).table["key"].item()
    calibration.write_text("sources: {'': {basis: measured, where: there, date: '2026-01-01'}}\n")
    assert moesim.sweep(SMALL, over=over, workers=0).table["key"].item() != before


def test_a_users_catalog_is_part_of_an_answers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = moesim.sweep(SMALL, seeds=1).table["key"].item()
    (tmp_path / "models.yaml").write_text("mine: {base: olmoe-1b-7b}\n")
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    assert moesim.sweep(SMALL, seeds=1).table["key"].item() != before


def test_a_statement_says_what_varies() -> None:
    spec, base = statement(OLMOE, over=OVER, seeds=3, road="simulate")
    assert (spec.count, spec.fields, spec.road, base.name) == (12, tuple(OVER), "simulate", "olmoe-8-h100")
