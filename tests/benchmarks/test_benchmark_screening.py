"""Speed of the screening on a planner's grid; run with
`python -m pytest -o addopts= tests/benchmarks/test_benchmark_screening.py --benchmark-only`. Seconds are measured here,
never asserted; memory is."""

from __future__ import annotations

import resource
import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import moesim
from moesim.scenario.scenario import Scenario
from moesim.screening import Candidates, Choices, screen
from moesim.screening import run as screening_run
from moesim.screening.layouts import plan
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.routing import CapacitySpec

BATCH, SIZES = 15360, (2048, 1024)
KINDS = ("1f1b", "interleaved-1f1b", "zero-bubble-v", "dualpipe")


def grid(count: int) -> tuple[Scenario, Choices, Candidates]:
    """So many legal layouts of DeepSeek-V3 on 2,048 or 1,024 H800, drawn from all of them."""
    base = moesim.load(
        {
            "model": "deepseek-v3",
            "cluster": {"gpu": "h800-sxm", "gpus": SIZES[0], "fabric": "rail-optimized-400g"},
            "parallelism": {"pipeline": 16, "expert": 64},
            "workload": {"global_batch": BATCH, "sequence_length": 4096},
            "precision": {"compute": "fp8-block", "dispatch": "fp8-block"},
            "routing": {"load": "bias-balanced"},
        }
    )
    recomputes: Any = ("none", "selective", "full", ("layernorm", "mla_up_proj", "moe_act"))
    choices = Choices(
        tuple(base.cluster.model_copy(update={"gpus": gpus}) for gpus in SIZES),
        recomputes,
        tuple(ScheduleSpec(kind=kind) for kind in KINDS),  # type: ignore[arg-type]
        ("dropless", CapacitySpec(factor=1.25)),
        ("auto", "nccl-all-to-all", "deepep-normal"),
        (OverlapSpec(), OverlapSpec(expert_communication=True)),
    )
    return base, choices, _legal(_drawn(40 * count), count)


def _drawn(count: int) -> dict[str, Any]:
    values = {
        "cluster": (0, 1),
        "tensor": (1, 2, 4, 8),
        "pipeline": (1, 2, 4, 8, 16),
        "virtual_pipeline": (1, 1, 2, 4),
        "expert": (8, 16, 32, 64, 128, 256),
        "expert_tensor": (1, 2),
        "context": (1, 2),
        "micro_batch": (1, 2, 4),
        "recompute": range(4),
        "schedule": range(len(KINDS)),
        "capacity": (0, 1),
        "dispatcher": range(3),
        "overlap": (0, 1),
    }
    generator = np.random.default_rng(0)
    return {name: generator.choice(list(each), count) for name, each in values.items()}


def _legal(row: dict[str, Any], count: int) -> Candidates:
    gpus = np.array(SIZES)[row["cluster"]]
    stages, chunks, kind = row["pipeline"], row["virtual_pipeline"], row["schedule"]
    data = gpus // (stages * row["tensor"] * row["context"])
    unit = data * row["micro_batch"]
    batches = BATCH // unit
    legal = ((gpus // stages) % (row["expert"] * row["expert_tensor"]) == 0) & (BATCH % unit == 0) & (batches <= 2048)
    interleaved = (chunks > 1) & (stages > 1) & (batches % stages == 0)
    legal &= np.where(kind == 1, interleaved, chunks == 1) & (stages * chunks <= 61)
    legal &= (kind != 2) | (stages > 1)
    legal &= (kind != 3) | ((stages % 2 == 0) & (batches % 2 == 0) & (batches >= 2 * stages))
    legal &= row["expert_tensor"] <= row["tensor"]
    names = [field.name for field in fields(Candidates)]
    table = np.unique(np.stack([row[name][legal] for name in names], axis=1), axis=0)
    np.random.default_rng(1).shuffle(table)
    return Candidates(*np.ascontiguousarray(table[:count].T))


@pytest.mark.parametrize("workers", [1, 2])
def test_screen_a_plan_of_50000(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """20,000 candidates a second on two cores is the bar, and a gigabyte at most."""
    base, choices, candidates = grid(50_000)
    assert len(candidates) == 50_000
    monkeypatch.setattr(screening_run, "WORKERS", workers)
    screen(base, choices, candidates.rows(slice(0, 100)))  # compiled code is loaded
    spent: list[float] = []

    def once() -> None:
        plan.cache_clear()
        begin = time.process_time()
        screen(base, replace(choices), candidates)  # a new question: nothing kept answers it
        spent.append(time.process_time() - begin)

    benchmark.pedantic(once, rounds=3)
    benchmark.extra_info["processor_microseconds_a_candidate"] = min(spent) / len(candidates) * 1e6
    print(f"\n{workers} workers: {min(spent) / len(candidates) * 1e6:.0f} us of processor time a candidate")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1e6
