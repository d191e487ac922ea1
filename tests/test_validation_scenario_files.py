"""Cases that name a scenario file instead of spelling a scenario out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import moesim
from moesim.validation import cases
from moesim.validation.scenario_files import read_scenario

SCENARIOS = Path(__file__).parents[1] / "scenarios"
NAME = "olmoe-8-h100.yaml"


def written(folder: Path, *scenarios: object) -> list[cases.Case]:
    rows = [
        {"id": f"case {number}", "kind": "train_step", "scenario": scenario, "measured": {"step_time": 1.0}}
        for number, scenario in enumerate(scenarios)
    ]
    path = folder / "cases.yaml"
    path.write_text(yaml.safe_dump(rows))
    return cases.read([path])


def test_a_path_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path starts where the case file stands, not where the command runs."""
    (tmp_path / "sub").mkdir()
    shutil.copy(SCENARIOS / NAME, tmp_path / "sub")
    monkeypatch.chdir(SCENARIOS.parent)
    spelt = yaml.safe_load((SCENARIOS / NAME).read_text())
    beside, absolute, inline = written(tmp_path, f"sub/{NAME}", str(SCENARIOS / NAME), spelt)
    assert beside.problem == absolute.problem == inline.problem == ""
    assert beside.scenario == absolute.scenario == inline.scenario == spelt
    validated = moesim.validate([tmp_path / "cases.yaml"])
    predicted = [row.predicted for row in validated.cases]
    assert len(predicted) == 3
    assert len(set(predicted)) == 1


def test_what_is_no_scenario_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    missing, a_list, a_number = written(tmp_path, "nowhere.yaml", "list.yaml", [1])
    assert "nowhere.yaml: no such file" in missing.problem
    assert "list.yaml" in a_list.problem
    assert "expected a mapping" in a_list.problem
    assert "or a file's path" in a_number.problem


def test_files_named_beside_the_scenario_are_found_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("x: 1\n")
    document = {
        "model": {"huggingface": "config.json", "layers": 3},
        "cluster": {"gpu": "h100-sxm", "calibration": "mine.yaml"},
        "routing": {"load": {"trace": "gpt-oss-20b", "fitted": 3}},
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(document))
    found = read_scenario(path)
    assert found["model"] == {"huggingface": str(tmp_path / "config.json"), "layers": 3}
    assert found["cluster"]["calibration"] == str(tmp_path / "mine.yaml")
    assert found["routing"]["load"] == {"trace": "gpt-oss-20b", "fitted": 3}
