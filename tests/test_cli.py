"""The command line as a user meets it: answers, exit codes, one clear message for a mistake, nothing half-written."""

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
OLMOE = ROOT / "scenarios" / "olmoe-8-h100.yaml"
SMALL = ["--set", "simulation.microbatch_samples=1", "--set", "workload.global_batch=64"]
SMALL_TEXT = """\
model: mixtral-8x7b
cluster: {gpu: h100-sxm, gpus: 64}
parallelism: {pipeline: 4, expert: 8}
workload: {global_batch: 256}
"""


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesim", *map(str, arguments)]
    # numba keeps its compiled kernels beside the package; a fresh folder would compile anew.
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        timeout=300,
    )


def refused(told: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert told.returncode == code, told.stderr
    assert "Traceback" not in told.stderr + told.stdout
    assert told.stdout == ""
    for word in words:
        assert word in told.stderr


def test_help_and_version() -> None:
    told = run("--help")
    assert told.returncode == 0
    for verb in ("simulate", "estimate", "compare", "show", "check", "catalog"):
        assert verb in told.stdout
    assert run("--version").stdout.strip() == "0.1.0"


def test_simulate_writes_everything(tmp_path: Path) -> None:
    told = run("simulate", OLMOE, *SMALL, "--out", tmp_path / "out", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["summary"]["step_time"]["value"] > 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"result.json", "operations.parquet", "routing.parquet", "report.html", "timeline.json"}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["summary"] == answer["summary"]


def test_simulate_prints_a_table_and_estimate_the_same_columns(tmp_path: Path) -> None:
    simulated = run("simulate", OLMOE, *SMALL, "--out", tmp_path)
    estimated = run("estimate", OLMOE, *SMALL)
    assert simulated.returncode == estimated.returncode == 0
    for word in ("step time", "experts", "activations"):
        assert word in simulated.stdout
        assert word in estimated.stdout


def test_estimate_and_simulate_have_the_same_metrics(tmp_path: Path) -> None:
    simulated = json.loads(run("simulate", OLMOE, *SMALL, "--json", "--out", tmp_path).stdout)
    estimated = json.loads(run("estimate", OLMOE, *SMALL, "--json").stdout)
    assert list(simulated["summary"]) == list(estimated["summary"])


def test_compare_takes_scenarios_and_result_folders(tmp_path: Path) -> None:
    run("simulate", OLMOE, *SMALL, "--out", tmp_path / "a")
    told = run("compare", tmp_path / "a", OLMOE, "--set", "routing.load=uniform", "--json")
    assert told.returncode == 0, told.stderr
    compared = json.loads(told.stdout)
    assert len(compared["metrics"]["step_time"]["values"]) == 2
    assert compared["step_time"][0]["sentence"]


def test_compare_dispatchers_ranks_all_that_run_and_says_why_others_do_not() -> None:
    scenario = ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml"
    told = run("compare", "--dispatchers", scenario, "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    rows = answer["dispatchers"]
    steps = [row["summary"]["step_time"]["value"] for row in rows if row["summary"]]
    assert steps == sorted(steps)
    assert len(steps) >= 3
    assert all(bool(row["summary"]) != bool(row["refusal"]) for row in rows)
    named = {row["dispatcher"]: row for row in rows}
    assert "one NVLink domain" in named["one-sided-nvl"]["refusal"]
    # Without de-duplication twice the bytes leave the node.
    plain, distinct = (
        named[name]["summary"]["bytes_scale_out_per_gpu"]["value"] for name in ("nccl-all-to-all", "deepep-normal")
    )
    assert plain > 1.9 * distinct
    assert named[answer["chosen"]]["summary"]
    table = run("compare", "--dispatchers", scenario)
    assert "hybrid-ep" in table.stdout
    assert "one-sided-nvl needs all ranks in one NVLink domain" in " ".join(table.stdout.split())
    refused(run("compare", "--dispatchers", scenario, OLMOE), 2, "takes one scenario")
    refused(run("compare", "--dispatchers", ROOT / "scenarios" / "dense-100b-512-h100.yaml"), 2, "nothing to dispatch")


def test_dense_against_sparse() -> None:
    pair = [ROOT / "scenarios" / name for name in ("dense-100b-512-h100.yaml", "sparse-1t-a50b-512-h100.yaml")]
    metrics = json.loads(run("compare", *pair, "--json").stdout)["metrics"]
    dense, sparse = metrics["total_parameters"]["values"]
    assert dense["value"] == pytest.approx(100e9, rel=0.03)
    assert sparse["value"] == pytest.approx(1e12, rel=0.03)
    assert metrics["flops_per_token"]["ratios"][1] == pytest.approx(0.5, abs=0.1)
    for name in ("active_parameters", "memory_per_gpu", "communication_time", "step_time"):
        assert all(value is not None for value in metrics[name]["values"])


def test_show_reads_back(tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(run("show", OLMOE).stdout, encoding="utf-8")
    assert run("check", shown).returncode == 0
    assert json.loads(run("show", OLMOE, "--json").stdout)["model"]["n_experts"] == 64


def test_catalog_lists_and_shows() -> None:
    kinds = {row["kind"] for row in json.loads(run("catalog", "--json").stdout)}
    assert {"models", "gpus", "fabrics", "dispatchers", "routers", "calibrations"} <= kinds
    for kind in sorted(kinds):
        listed = json.loads(run("catalog", kind, "--json").stdout)
        assert listed, kind
        name = listed[0]["name"]
        shown = run("catalog", kind, name)
        assert shown.returncode == 0, shown.stderr
    gpu = json.loads(run("catalog", "gpus", "h100-sxm", "--json").stdout)
    assert gpu["sources"]
    refused(run("catalog", "gpu"), 2, "gpus")
    refused(run("catalog", "gpus", "h1000"), 2, "h100-sxm")


def test_a_users_catalog_is_found(tmp_path: Path) -> None:
    (tmp_path / "gpus.yaml").write_text("my-gpu: {base: h100-sxm, memory: 141 GB}\n", encoding="utf-8")
    told = run("show", OLMOE, "--set", "cluster.gpu=my-gpu", "--json", MOESIM_CATALOG=str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["cluster"]["gpu"]["memory"] == 141e9


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        ("\n# nothing\n", "empty"),
        (b"\xff\xfe\x00model", "UTF-8"),
        ("- a\n- b\n", "mapping"),
        ("model: [", "line"),
        ("model: a\nmodel: b\n", "model"),
        (BOMB, "100,000 values"),
        ("[" * 5000, "deep"),
        (SMALL_TEXT + "!!python/object/apply:os.system ['true']\n", ""),
        (SMALL_TEXT.replace("gpus: 64", "gpus: 63"), "cluster.gpus"),
        (SMALL_TEXT.replace("parallelism", "paralelism"), "parallelism"),
    ],
)
@pytest.mark.parametrize("verb", ["estimate", "check"])
def test_bad_files_get_one_clear_message(tmp_path: Path, verb: str, content: str | bytes, word: str) -> None:
    refused(run(verb, write(tmp_path / "bad.yaml", content)), 2, "bad.yaml", word)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    begin = time.perf_counter()
    refused(run("estimate", huge), 2, "huge.yaml")
    assert time.perf_counter() - begin < 30


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(run("estimate", tmp_path / "absent.yaml"), 2, "absent.yaml")
    refused(run("estimate", tmp_path), 2, str(tmp_path))
    refused(run("estimate"), 2)
    refused(run("estimat"), 2)
    refused(run("compare", OLMOE), 2, "two")


def test_results_cannot_go_into_a_file(tmp_path: Path) -> None:
    blocker = write(tmp_path / "file", "x")
    refused(run("simulate", OLMOE, *SMALL, "--out", blocker), 2, "file")
    assert blocker.read_bytes() == b"x"


def test_what_does_not_fit_is_an_answer(tmp_path: Path) -> None:
    big = write(tmp_path / "big.yaml", SMALL_TEXT.replace("mixtral-8x7b", "deepseek-v3"))
    told = run("estimate", big)
    refused(told, 3, "does not fit", "binding", "relax")
    assert run("estimate", big, "--even-if-infeasible").returncode == 0
    assert run("check", big, "--json").returncode == 3


def test_a_users_text_is_not_markup(tmp_path: Path) -> None:
    told = run("estimate", OLMOE, "--set", "question='[/foo] [red]hi[/red]'")
    assert told.returncode == 0, told.stderr
    assert "[/foo] [red]hi[/red]" in told.stdout


def test_an_overlays_calibration_stands_on_the_packaged_one(tmp_path: Path) -> None:
    write(tmp_path / "calibrations.yaml", "training-compute: {gemm_rule_limit: 0.8}\n")
    assert run("estimate", OLMOE, "--json", MOESIM_CATALOG=str(tmp_path)).returncode == 0


def test_a_full_device_is_not_our_bug() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this machine")
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "moesim", "show", str(OLMOE)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert told.returncode == 2
    assert "cannot write" in told.stderr


def test_all_problems_of_a_file_as_json(tmp_path: Path) -> None:
    bad = write(
        tmp_path / "bad.yaml", SMALL_TEXT.replace("gpus: 64", "gpus: 63") + "overlap: {x: 1}\nrecompute: some\n"
    )
    told = run("check", bad, "--json")
    assert told.returncode == 2
    assert {problem["where"] for problem in json.loads(told.stdout)["problems"]} >= {"overlap.x", "recompute"}


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moesim", "simulate", str(ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml")]
    endless = ["--set", "simulation.microbatch_samples=1000", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, *endless], text=True, preexec_fn=hears, **pipes)
    time.sleep(4.0)
    stdout, stderr = interrupt(process)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not out.exists() or not list(out.iterdir())


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("simulate", OLMOE, *SMALL, "--out", tmp_path / name).returncode == 0
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
