"""`moesim sweep` as a user meets it, and the sweeps and the script that come with moesim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from sweep_fixture import ROOT, SMALL, run

import moesim
from moesim.sweeps.display import MOST_ROWS, as_dict, reasons, table
from moesim.sweeps.result import Sweep
from moesim.sweeps.run import statement
from moesim.sweeps.sampling import points_of
from moesim.terminal import console

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = sorted((ROOT / "scenarios" / "sweeps").glob("*.yaml"))
SCRIPT = ROOT / "scenarios" / "sweep_in_ten_lines.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    document = {"question": "Which micro-batch?", "scenario": SMALL, "grid": {"workload.micro_batch": [1, 2, 3]}}
    path = tmp_path / "batches.yaml"
    path.write_text(json.dumps(document))
    return path


def printed(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    console().print(table(sweep))
    for line in reasons(sweep):
        console().print(line)
    return capsys.readouterr().out


def test_it_prints_a_table_and_writes_one(path: Path, tmp_path: Path) -> None:
    told = run(path, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("Which micro-batch?\n3 points")
    for word in ("micro_batch", "step time", "2 done, 1 illegal", "workload.global_batch: 64 sequences do not divide"):
        assert word in told.stdout
    written = tmp_path / "out" / "batches" / "sweep.parquet"
    assert "wrote out/batches/sweep.parquet: 2 points computed, 0 there already" in told.stderr
    assert pd.read_parquet(written)["status"].tolist() == ["done", "done", "illegal"]
    again = run(path, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stdout == ""
    assert "out/batches holds the results of a sweep; go on with --resume, or name another --out" in again.stderr


def test_json_is_one_object_with_every_row(path: Path, tmp_path: Path) -> None:
    told = run(path, "--out", tmp_path / "out", "--json", "--workers", 0)
    answer = json.loads(told.stdout)
    assert {name: answer[name] for name in ("points", "points_done", "points_illegal", "computed", "reused")} == {
        "points": 3,
        "points_done": 2,
        "points_illegal": 1,
        "computed": 2,
        "reused": 0,
    }
    assert [row["workload.micro_batch"] for row in answer["rows"]] == [1, 2, 3]
    assert answer["rows"][0]["step_time"] > 0
    assert answer["rows"][2]["step_time"] is None


def test_mistakes_are_one_message(path: Path, tmp_path: Path) -> None:
    path.write_text(json.dumps({"scenario": SMALL, "grid": {"workload.micro_bach": [1]}}))
    for arguments, words in (
        ((path,), "workload.micro_bach: unknown key; nearest: micro_batch"),
        ((tmp_path / "nowhere.yaml",), "no such file"),
        ((path, "--executor", "ray"), "unknown executor 'ray'; allowed: local, dask"),
        ((path, "--address", "tcp://127.0.0.1:9"), "add --executor dask"),
        ((path, "--workers", -1), "workers"),
    ):
        told = run(*arguments, "--out", tmp_path / "out")
        assert told.returncode == 2, told.stderr
        assert words in told.stderr
        assert "Traceback" not in told.stderr
        assert told.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_long_table_shows_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(moesim.sweep(SMALL, seeds=MOST_ROWS + 3, workers=0), capsys)
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 3} points" in text
    assert f"{MOST_ROWS + 3} done" in text
    assert text.count(" done ") == MOST_ROWS


def test_fields_of_one_last_word_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    found = moesim.sweep(SMALL, over=[{"routing.seed": 1, "simulation.seed": 2, "parallelism.expert": 4}])
    text = printed(found, capsys)
    assert "routing.seed" in text
    assert "simulation.seed" in text
    assert "parallelism" not in text
    assert as_dict(found)["rows"][0]["seed"] == 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_opens_with_its_question_and_runs(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("question: ")
    spec, _ = statement(path)
    assert spec.question.endswith("?")
    assert f"| `{path.stem}` | {spec.question} |" in README
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for way in ("grid", "random", "latin_hypercube", "points"):
        document.pop(way, None)
    listed = points_of(spec)
    document["list"] = [listed[0], listed[-1]]
    document["scenario"] = str(path.parent / document["scenario"])
    assert moesim.sweep(document, workers=0).failed.empty


def test_the_sweep_shown_is_one_shipped() -> None:
    assert (ROOT / "scenarios" / "sweeps" / "network-deepseek-v3.yaml").read_text(encoding="utf-8") in README


def test_the_script_shows_a_sweep_in_ten_lines(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "uniform" in told.stdout
    assert "{'done': 32}" in told.stdout
    assert told.stderr == ""
    lines = SCRIPT.read_text(encoding="utf-8").partition('"""\n')[2].splitlines()
    assert sum(bool(line) and not line.startswith("#") for line in lines) <= 10
    assert not any(tmp_path.iterdir())
