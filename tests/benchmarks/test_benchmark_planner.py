"""Speed of the planner; run with `python -m pytest -o addopts= tests/benchmarks --benchmark-only`. Seconds are measured
here, never asserted; counts are."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import moesim
from moesim.planner.reading import Question, questions
from moesim.planner.run import read_spec
from moesim.planner.sieve import screened
from moesim.planner.space import enumerate_space

LINE: dict[str, Any] = {
    "scenario": {"model": "qwen3-235b-a22b", "workload": {"total_tokens": "1T"}},
    "search": {"cluster.gpu": ["h100-sxm", "gb200-nvl72"]},
    "limits": {"days": 30},
}
COMBINATIONS = 6_513_408


@pytest.fixture(scope="module")
def question() -> Question:
    return questions(read_spec({**LINE, "candidates": 50_000}, "line"), Path())[0]


def test_enumerating_millions_of_combinations(benchmark: BenchmarkFixture, question: Question) -> None:
    """The one-line question's whole space, every combination judged."""
    space = benchmark.pedantic(enumerate_space, args=(question,), rounds=3, warmup_rounds=1)
    assert space.total == COMBINATIONS


def test_screening_as_the_planner_asks_for_it(benchmark: BenchmarkFixture, question: Question) -> None:
    """20,000 candidates a second is the bar."""
    rows = enumerate_space(question).rows[::4]
    found = benchmark.pedantic(screened, args=(question, rows, None), rounds=3, warmup_rounds=1)
    benchmark.extra_info["candidates_a_second"] = len(rows) / benchmark.stats.stats.min
    assert len(found) == len(rows)


def test_fifty_thousand_candidates_twenty_simulated(benchmark: BenchmarkFixture) -> None:
    """A minute on 2 cores is the bar."""
    asked = {key: LINE[key] for key in ("search", "limits")}

    def plan() -> Any:
        return moesim.plan(LINE["scenario"], **asked, candidates=50_000, simulate=20)

    model = benchmark.pedantic(plan, rounds=1).models[0]
    benchmark.extra_info["peak_memory_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert 45_000 <= model.screened <= 50_000  # as many as there are around the best
    assert sum(row.road == "simulate" for row in model.rows) == 20
