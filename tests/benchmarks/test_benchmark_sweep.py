"""Speed of sweeps, by executor and number of workers, and what a cluster of 64 workers would take; run with
`python -m pytest -o addopts= tests/benchmarks/test_benchmark_sweep.py --benchmark-only -s`. Seconds are measured here,
never asserted. On a busy machine read the CPU times, which are told beside the wall times."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import moesim
from moesim.sweeps.dask_executor import DaskPool
from moesim.sweeps.executors import Executor
from moesim.sweeps.local import LocalPool
from moesim.sweeps.work import Answer, Task, answer

ROOT = Path(__file__).parents[2]
SMALL, LARGE = "gpt-oss-120b-64-h100", "deepseek-v3-2048-h800"
ESTIMATED, SIMULATED = 10_000, 200


class Instant:
    """Answers every task with the first one's answer: what is left is this process's own work on a point."""

    def run(self, tasks: Iterator[Task]) -> Iterator[Answer]:
        first: Answer | None = None
        for task in tasks:
            first = first or answer(task)
            yield Answer(task.key, first.text)


def spec(name: str, points: int, road: str = "estimate") -> dict[str, Any]:
    """Points that all differ, though not in what they cost to compute."""
    ranges = {
        "cluster.nic_bandwidth": {"low": "300 Gb/s", "high": "800 Gb/s"},
        "prices.gpu_hour": {"low": 1.0, "high": 4.0},
    }
    return {"scenario": str(ROOT / "scenarios" / f"{name}.yaml"), "road": road, "random": ranges, "points": points}


def cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def measured(benchmark: BenchmarkFixture, document: dict[str, Any], executor: Executor, out: Path) -> None:
    """One run of a sweep into a fresh folder, with points/s and CPU milliseconds a point here and in the workers."""

    def once() -> tuple[Any, list[float]]:
        shutil.rmtree(out, ignore_errors=True)
        before = [cpu(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        found = moesim.sweep(document, out=out, executor=executor)
        after = [cpu(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return found, [1e3 * (end - begin) for begin, end in zip(before, after, strict=True)]

    begun = time.monotonic()
    found, (here, there) = benchmark.pedantic(once, rounds=1)
    points, wall = found.arrow.num_rows, time.monotonic() - begun
    told = {
        "points_a_second": round(points / wall, 1),
        "cpu_milliseconds_a_point_here": round(here / points, 2),
        "cpu_milliseconds_a_point_in_workers": round(there / points, 2),
    }
    benchmark.extra_info.update(told)
    print(f"\n{points} points in {wall:.1f} s: {told}")
    assert found.counts == {"done": points}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_estimated_points(benchmark: BenchmarkFixture, name: str, workers: int, tmp_path: Path) -> None:
    measured(benchmark, spec(name, ESTIMATED), LocalPool(workers), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_simulated_points(benchmark: BenchmarkFixture, workers: int, tmp_path: Path) -> None:
    measured(benchmark, spec(SMALL, SIMULATED, "simulate"), LocalPool(workers), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_estimated_points_on_dask(benchmark: BenchmarkFixture, workers: int, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed")
    measured(benchmark, spec(SMALL, ESTIMATED), DaskPool(workers=workers), tmp_path / "out")


def test_resume_of_all(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Every answer is there already: reading, checking, and the table."""
    moesim.sweep(spec(SMALL, ESTIMATED), out=tmp_path, executor=Instant())
    found = benchmark.pedantic(moesim.sweep, (spec(SMALL, ESTIMATED),), {"out": tmp_path, "resume": True}, rounds=1)
    assert found.reused == ESTIMATED


def projected(points: int, point: float, client: float, workers: int) -> float:
    """Seconds of a sweep on a cluster whose start is not counted: `point` seconds to compute one, `client` seconds that
    this process (with the scheduler, if it runs it) spends on one. Both go on at once, so the slower decides."""
    return points * max(point / workers, client)


def test_projected_cost_on_64_dask_workers(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """From the client's own work on a point, what a task costs on two loopback workers, and what a point takes."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    begun = time.process_time()
    benchmark.pedantic(moesim.sweep, (spec(SMALL, ESTIMATED),), {"out": tmp_path, "executor": Instant()}, rounds=1)
    own = (time.process_time() - begun) / ESTIMATED
    carried = _carried(5_000)
    client = own + carried
    print(f"\na point costs this process {1e3 * own:.2f} ms, and {1e3 * carried:.2f} ms more on Dask")
    for name, road, count in ((SMALL, "estimate", ESTIMATED), (LARGE, "estimate", ESTIMATED), (SMALL, "simulate", 200)):
        point = _seconds(name, road)
        seconds = projected(count, point, client, 64)
        benchmark.extra_info[f"{name} {road}"] = {"point": point, "client": client, "seconds": seconds}
        print(f"{count} points of {name} ({road}, {1e3 * point:.0f} ms each): {seconds:.1f} s on 64 workers")


def _carried(count: int) -> float:
    """CPU seconds of client and scheduler, both in this process, for a task of usual size that is refused at once."""
    tasks = (Task(f"{number:032x}", "estimate", "{" + " " * 5000) for number in range(count))
    answers = DaskPool(workers=2).run(tasks)
    next(answers)
    begun = time.process_time()
    assert sum(1 for _ in answers) == count - 1
    return (time.process_time() - begun) / count


def _seconds(name: str, road: str) -> float:
    """CPU seconds of one point, after the first."""
    scenario = moesim.load(ROOT / "scenarios" / f"{name}.yaml")
    task = Task("0" * 32, road, scenario.model_dump_json())  # type: ignore[arg-type]
    answer(task)
    begun, rounds = time.process_time(), 20 if road == "estimate" else 2
    for _ in range(rounds):
        answer(task)
    return (time.process_time() - begun) / rounds
