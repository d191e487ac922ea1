"""Speed of a long run under failures; run with `python -m pytest -o addopts= tests/benchmarks --benchmark-only`."""

from __future__ import annotations

from pathlib import Path
from time import process_time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import moesim
from moesim.costs.reliability import plan_run
from moesim.engine.reliability import simulate_runs
from moesim.randomness import Streams
from moesim.specs.workload import FailuresSpec

DEEPSEEK = Path(__file__).parents[2] / "scenarios" / "deepseek-v3-2048-h800.yaml"
MONTH = 30 * 86400.0


DISTURBED = ["simulation.jitter=0.05", "simulation.stragglers=[{gpu: 5, slowdown: 1.2}]"]


@pytest.mark.parametrize("disturbed", [[], DISTURBED], ids=["failures", "jitter and a slow GPU too"])
def test_ten_steps_and_a_month(benchmark: BenchmarkFixture, disturbed: list[str]) -> None:
    """Ten simulated steps of the main job and a month of training under failures: 30 s is the bar."""
    failures = "simulation.failures={mean_time_between_failures: 50000 h}"
    scenario = moesim.load(DEEPSEEK, [failures, "simulation.steps=10", "workload.total_tokens=null", *disturbed])
    began = process_time()
    result = benchmark.pedantic(moesim.simulate, args=(scenario,), rounds=1, warmup_rounds=0)
    print(f"\n{process_time() - began:.1f} s of the processor")
    assert result.summary["useful_time"].value == pytest.approx(MONTH, rel=1e-3)
    assert 0.9 < result.summary["goodput_fraction"].value < 1


@pytest.mark.parametrize("gpus", [2_048, 16_384, 131_072])
def test_a_month_alone(benchmark: BenchmarkFixture, gpus: int) -> None:
    """As many runs as are simulated for a range."""
    spec = FailuresSpec.model_validate({"mean_time_between_failures": "50000 h"})
    plan = plan_run(spec, gpus, round(MONTH / 20), 20.0)
    found = benchmark.pedantic(simulate_runs, args=(plan, np.full(10, 20.0), Streams(0)), rounds=2)
    print(f"\n{gpus} GPUs: {found.runs} runs of {found.failures:.0f} failures and {plan.segments} checkpoints")
    assert 0 < found.goodput < 1
