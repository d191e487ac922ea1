"""`moesim plan` as a user meets it: one line, a file, exit codes, tables that fit, files that run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupts import hears, interrupt

ROOT = Path(__file__).parents[1]
LINE = ["--model", "olmoe-1b-7b", "--gpu", "h100-sxm", "--gpus", "8", "--tokens", "100B", "--days", "10"]
FEW = ["--search", "parallelism.pipeline=1,2", "--search", "parallelism.tensor=1", "--search", "schedule=auto"]
SMALL = [*LINE, *FEW, "--search", "recompute=none,[layernorm, moe_act]", "--workers", "1"]


def run(*arguments: object, columns: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesim", "plan", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("plan") / "out"
    return run(*SMALL, "--simulate", 1, "--out", folder, columns=80), folder


def test_one_line_is_a_plan(written: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    told, folder = written
    assert told.returncode == 0, told.stderr
    for word in ("simulated", "by the closed form", "Rejected, each by its binding reason", "runner-up", "GPU-h"):
        assert word in told.stdout
    assert "note: global batch" in told.stderr
    assert max(map(len, told.stdout.splitlines())) <= 80
    assert {path.name for path in folder.iterdir()} == {"plan.json", "plan.html", "candidates.parquet", "winner.yaml"}


def test_the_winner_runs_as_it_is(written: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = written
    command = [sys.executable, "-m", "moesim", "estimate", str(folder / "winner.yaml"), "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["models"][0]
    winner = plan["rows"][0]
    assert winner["name"] == plan["winner"] == answer["name"]
    planned = winner["summary"]["step_time"]["value"]
    assert answer["summary"]["step_time"]["value"] == pytest.approx(planned, rel=0.02)


def test_json_is_one_object() -> None:
    told = run(*SMALL, "--simulate", 0, "--json", "--objective", "time", "--price", "h100-sxm=2.5")
    answer = json.loads(told.stdout)
    assert answer["objective"] == "time"
    assert answer["models"][0]["rows"][0]["summary"]["cost"]["unit"] == "$"


def test_infeasible_is_exit_3_with_what_would_relax_it() -> None:
    told = run(*SMALL, "--days", "0.5", "--simulate", 0)
    assert told.returncode == 3
    assert "the closest" in told.stdout
    assert "The closest is" in told.stdout
    for word in ("No candidate keeps all limits", "binding for most of them", "would relax with days"):
        assert word in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "olmo-1b", *LINE[2:]], "nearest: olmoe-1b-7b"),
        ([*LINE[:3], "h100-smx", *LINE[4:]], "nearest: h100-sxm"),
        ([*LINE[:9], "0"], "limits.days: must be above 0"),
        ([*LINE, "--search", "parallelism.tensor=3"], "is a legal layout of olmoe-1b-7b"),
        ([*LINE, "--search", "tensor"], "is not of the form FIELD=VALUE"),
        ([*LINE, "--price", "2.5"], "is not of the form GPU=DOLLARS"),
        ([*LINE, "--gpus", "eight"], "search.cluster.gpus.0: expected a whole number"),
        (["no-such-plan.yaml"], "no such file"),
        ([], "say what to plan"),
    ],
)
def test_mistakes_are_exit_2(arguments: list[str], words: str) -> None:
    told = run(*arguments)
    assert told.returncode == 2, told.stderr
    assert words in told.stderr
    assert "Traceback" not in told.stderr
    assert told.stdout == ""


def test_a_file_with_options_over_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: How?\n"
        "scenario: {model: olmoe-1b-7b, cluster: {gpu: h100-sxm, gpus: 8}, workload: {total_tokens: 100B}}\n"
        "search: {parallelism.pipeline: 1, parallelism.tensor: 1, schedule.kind: auto, recompute: none}\n"
        "simulate: 0\n"
    )
    told = run(file, "--objective", "time", "--set", "workload.global_batch=128", "--json", "--workers", 1)
    answer = json.loads(told.stdout)
    assert (answer["name"], answer["question"], answer["objective"]) == ("mine", "How?", "time")
    assert not any("Step Law" in note for note in answer["models"][0]["notes"])


def test_a_scenario_file_is_searched_anew_and_its_layout_ranked() -> None:
    few = ["--search", "parallelism.tensor=1", "--search", "parallelism.pipeline=1", "--search", "schedule=auto"]
    told = run(ROOT / "scenarios" / "olmoe-8-h100.yaml", *few, "--simulate", 1, "--workers", 1)
    assert told.returncode == 0, told.stderr
    assert "Your layout (8 h100-sxm, TP 1, PP 1, EP 8, MB 2): rank" in " ".join(told.stdout.split())
    assert "(your layout)" in told.stdout
    assert "note: the scenario's own layout is searched anew" in told.stderr


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "moesim", "plan", *LINE, "--simulate", "20", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears)
    time.sleep(6)
    _, stderr = interrupt(process)
    assert process.returncode == 130, stderr
    assert "nothing was left half-written" in stderr
    assert not folder.exists()
