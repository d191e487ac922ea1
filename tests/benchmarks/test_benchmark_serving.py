"""Speed of serving; run with `python -m pytest -o addopts= tests/benchmarks --benchmark-only`. Seconds are measured
here, never asserted; counts are."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from moesim.scenario.loading import load_serving
from moesim.serving.run import simulate_serving

SCENARIO = Path(__file__).parents[2] / "scenarios" / "serving" / "deepseek-v3-96-h800.yaml"


def test_ten_thousand_requests_on_96_gpus(benchmark: BenchmarkFixture) -> None:
    """30 s on 2 cores is the bar."""
    served = load_serving(SCENARIO)
    found = benchmark.pedantic(simulate_serving, args=(served,), rounds=3, warmup_rounds=1)
    assert len(found.requests) == 10_000
    assert found.iterations["iterations"].sum() > 5_000
