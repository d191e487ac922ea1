"""Speed and memory of the main job, and how its cost grows; run with
`python -m pytest -o addopts= tests/benchmarks --benchmark-only`. Seconds are measured here, never asserted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import moesim

ROOT = Path(__file__).parents[2]
DEEPSEEK = ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml"
DEEPSEEK_OPERATIONS = 67340


def child(*command: str) -> float:
    """Runs a command to its end and returns the most memory that any child of this process held, bytes."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy())
    return 1024.0 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_simulate_deepseek(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The whole command in a process of its own, results written: 10 s and 1 GB are the bars."""
    command = (sys.executable, "-m", "moesim", "simulate", str(DEEPSEEK), "--out", str(tmp_path), "--json")
    memory = benchmark.pedantic(child, args=command, rounds=3, warmup_rounds=1)
    benchmark.extra_info["peak_memory_gigabytes"] = memory / 1e9
    assert memory < 1e9


def test_simulate_deepseek_in_process(benchmark: BenchmarkFixture) -> None:
    scenario = moesim.load(DEEPSEEK)
    result = benchmark.pedantic(moesim.simulate, args=(scenario,), rounds=3, warmup_rounds=1)
    compute = result.operations.stream.isin(["compute", "communication"])
    assert int(compute.sum()) == DEEPSEEK_OPERATIONS


def test_estimate_deepseek(benchmark: BenchmarkFixture) -> None:
    """After import: 20 ms is the bar."""
    scenario = moesim.load(DEEPSEEK)
    assert benchmark(moesim.estimate, scenario).summary["step_time"].value > 0


def test_load_deepseek(benchmark: BenchmarkFixture) -> None:
    assert benchmark(moesim.load, DEEPSEEK).microbatches == 120


@pytest.mark.parametrize("arguments", [("-c", "import moesim"), ("-m", "moesim", "--help")], ids=["import", "help"])
def test_start_up(benchmark: BenchmarkFixture, arguments: tuple[str, ...]) -> None:
    """`import moesim` in 0.2 s and `moesim --help` in 0.5 s are the bars, Python's own start included."""
    benchmark.pedantic(child, args=(sys.executable, *arguments), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("gpus", [64, 128, 256, 512, 1024, 2048, 4096])
def test_cost_grows_linearly(benchmark: BenchmarkFixture, gpus: int) -> None:
    """Every GPU is simulated: 16 pipeline ranks of one expert-parallel group of gpus / 16."""
    document: dict[str, Any] = {
        "model": {"base": "deepseek-v3", "layers": 16, "moe_layers": 16, "moe_layer_pattern": "all", "mtp_layers": 0},
        "cluster": {"gpu": "h800-sxm", "gpus": gpus},
        "parallelism": {"pipeline": 16, "expert": gpus // 16},
        "workload": {"global_batch": 32 * gpus // 16},
        "routing": {"load": "bias-balanced"},
        "dispatcher": {"kind": "deepep-normal"},
        "simulation": {"microbatch_samples": 8},
    }
    scenario = moesim.load(document)
    result = benchmark.pedantic(
        moesim.simulate, args=(scenario,), kwargs={"even_if_infeasible": True}, rounds=2, warmup_rounds=1
    )
    ranks = scenario.parallelism.expert
    routed = 16 * 8 * ranks * scenario.tokens_per_rank
    work = {"rank_operations": len(result.operations) * ranks, "tokens_routed": routed}
    benchmark.extra_info.update(work)
    print(f"\n{gpus} GPUs: {work}")
    assert work["tokens_routed"] == 16 * 8 * 4096 * gpus // 16
