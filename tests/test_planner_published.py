"""Against published runs: the planner finds layouts as good as theirs, and ranks theirs as they were measured.

Budget: 2,000 screened candidates a published configuration, of the same model, GPUs, batch, precision and software. The
planner is not told the published layout: nothing of it is in the question.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

import moesim
from moesim.planner.reading import questions
from moesim.planner.run import read_spec
from moesim.planner.search import quick
from moesim.planner.sieve import screened
from moesim.planner.space import enumerate_space
from moesim.specs.parallelism import OverlapSpec
from moesim.validation.cases import SHIPPED, Case, read

BUDGET = 2000
NOISE = 1.06  # one configuration under two releases differs by 6 % in the median
RATE = "tokens_per_second_per_gpu"
# Rows of Megatron-Bridge: Hopper and Blackwell, one node to 256 GPUs; the third is the hardest of 40 to beat.
ROWS = {
    "26.02.01/00414": "gpt-oss-120b on 64 H100",
    "26.02.01/00418": "Qwen3-30B-A3B on 8 GB200",
    "25.09/00572": "DeepSeek-V3 on 256 GB200",
}
SIMULATED = "26.02.01/00418"
OTHER_OVERLAPS = tuple(name for name in OverlapSpec.model_fields if name != "expert_communication")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case for case in read([SHIPPED / "train-step.yaml"]) if case.scenario is not None]


def published(cases: list[Case], number: str) -> dict[str, Any]:
    found = next(case for case in cases if case.id.endswith(f"megatron-bridge-{number}"))
    return dict(found.scenario or {})


def planned(document: dict[str, Any], simulate: int) -> tuple[moesim.Result, Any]:
    """The published configuration by the closed form, and the plan for the same model, GPUs and batch.

    Where the memory law finds the published layout itself tight, the plan may be as tight.
    """
    own = moesim.estimate(moesim.load(document), even_if_infeasible=True)
    share = own.summary["fits_in_memory"].value
    limits = {"memory_headroom": 1.0 - share} if share > 0.9 else {}
    said: dict[str, Any] = {"objective": "time", "simulate": simulate, "candidates": BUDGET}
    return own, moesim.plan(without_layout(document), limits=limits, **said)


def without_layout(document: dict[str, Any]) -> dict[str, Any]:
    """The configuration without all that the planner searches; what its software does of itself stays."""
    found = {key: value for key, value in document.items() if key not in ("recompute", "schedule")}
    for key, kept in (("parallelism", ("data_sharding", "sequence_parallel")), ("overlap", OTHER_OVERLAPS)):
        found[key] = {name: value for name, value in document.get(key, {}).items() if name in kept}
    work = document["workload"]
    return {**found, "workload": {name: value for name, value in work.items() if name != "micro_batch"}}


@pytest.mark.parametrize("number", ROWS, ids=ROWS.values())
def test_a_layout_as_good_as_the_published_one_is_found(number: str, cases: list[Case]) -> None:
    document = published(cases, number)
    simulate = 1 if number == SIMULATED else 0
    own, plan = planned(document, simulate)
    winner = plan.winner
    assert winner is not None
    assert plan.models[0].screened <= BUDGET
    assert plan.models[0].own is None
    assert plan.models[0].total > 10 * BUDGET
    road = moesim.simulate(quick(moesim.load(document)), even_if_infeasible=True) if simulate else own
    assert winner.road == ("simulate" if simulate else "estimate")
    assert winner.summary["step_time"].value <= road.summary["step_time"].value
    assert winner.figures.memory_share[0] <= max(0.9, own.summary["fits_in_memory"].value)


def step_by_screening(document: dict[str, Any]) -> float:
    """Seconds that the planner's sieve gives exactly the published layout."""
    layout = document["parallelism"]
    names = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")
    overlap = document.get("overlap", {}).get("expert_communication", False)
    search = {
        **{f"parallelism.{name}": layout.get(name, 1) for name in names},
        "workload.micro_batch": document["workload"].get("micro_batch", 1),
        "recompute": [document.get("recompute", "none")],
        "schedule.kind": "auto",
        "overlap": {"expert_communication": overlap},
        "routing.capacity": [document.get("routing", {}).get("capacity", "dropless")],
    }
    asked = questions(read_spec({"scenario": document, "search": search}, "published"), Path())[0]
    rows = enumerate_space(asked).rows
    assert len(rows) == 1
    return float(screened(asked, rows, None).figures.step_seconds[0])


def test_published_layouts_are_ranked_as_measured(cases: list[Case]) -> None:
    """Layouts of one model on the same GPUs, batch, format and software, where they differ by more than noise:
    9 of 10 pairs in order, and the same over all."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        document = case.scenario or {}
        if case.known or document["stack"] == "megatron-bridge-aws-efa":
            continue
        same = [document["model"], document["cluster"], document["precision"], document["stack"]]
        key = json.dumps([*same, document["workload"]["global_batch"], document["workload"]["sequence_length"]])
        groups.setdefault(key, []).append((1.0 / case.measured[RATE], step_by_screening(document)))
    several = [rows for rows in groups.values() if len(rows) > 1]
    pairs = [
        (one > two) == (said_one > said_two)
        for rows in several
        for (one, said_one), (two, said_two) in combinations(rows, 2)
        if max(one, two) / min(one, two) > NOISE
    ]
    print(f"{len(several)} groups, {len(pairs)} pairs, {sum(pairs) / len(pairs):.3f} in order")
    assert len(pairs) > 50
    assert sum(pairs) / len(pairs) >= 0.9
    ranks = [spearmanr(*zip(*rows, strict=True)).statistic for rows in several if len(rows) > 3]
    assert sum(ranks) / len(ranks) > 0.9
