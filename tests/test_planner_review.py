"""What a reviewer found in plans: default sizes and limits, ranges that cross a limit, words where nothing fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planner_fixture import SCENARIO, SMALL, question

import moesim
from moesim.errors import UserError
from moesim.plan_cli import infeasible
from moesim.planner.defaults import divisors
from moesim.planner.plan import Plan
from moesim.planner.sizes import LARGEST, gpu_counts, least_held, sizes_words
from moesim.planner.space import COLUMNS, SAME, enumerate_space
from moesim.planner.wording import band
from moesim.specs.plan import LimitsSpec, Objective

FEW: dict[str, Any] = {
    "cluster.gpu": "h100-sxm",
    "parallelism.tensor": 8,
    "schedule.kind": "auto",
    "recompute": "full",
    "workload.micro_batch": 1,
}


def large(limits: dict[str, Any], **search: Any) -> Plan:
    """A plan of a model that eight GPUs cannot hold."""
    scenario = {"model": "deepseek-v3", "workload": {"total_tokens": "100B"}}
    return moesim.plan(scenario, search={**FEW, **search}, limits=limits, simulate=0, workers=1)


def sizes(objective: Objective = "cost", **limits: Any) -> tuple[int, ...]:
    return gpu_counts(question().base, LimitsSpec.model_validate(limits), objective)


@pytest.mark.parametrize(("limits", "key"), [({"gpus": 8}, "gpus"), ({"power": 100}, "power")])
def test_a_limit_too_low_for_the_model_is_the_one_that_relaxes(limits: dict[str, Any], key: str) -> None:
    plan = large(limits)
    assert [one.limit for one in plan.models[0].relaxations] == [key]
    assert f"would relax with {key}" in infeasible(plan)
    assert "The closest is" in infeasible(plan)


def test_sizes_too_small_for_the_model_say_how_many_gpus_it_needs() -> None:
    plan = large({}, **{"cluster.gpus": 8})
    model = plan.models[0]
    base = model.base.model_copy(update={"cluster": model.question.choices.clusters[0]})
    assert f"need at least {int(least_held(base, 0.9)) + 1:,} h100-sxm instead of 8" in infeasible(plan)
    assert "No limit alone" not in infeasible(plan)


def test_one_size_lies_beyond_the_limit() -> None:
    first = sizes()[0]
    assert sizes(gpus=2 * first) == (first, 2 * first, 4 * first)
    assert sizes(gpus=1 << 20) == sizes()


def test_time_goes_up_to_the_limit() -> None:
    assert {64, 96, 128} <= set(sizes("time", gpus=100))
    assert {512, 960, 1024} <= set(sizes("time", gpus=1000))
    assert max(size for size in sizes("time", gpus=96) if size <= 96) == 96
    assert max(sizes("time", gpus=1 << 22)) == 1 << 22


def test_fewest_gpus_has_whole_domains_between() -> None:
    found = sizes("fewest-gpus", days=1)
    assert {3 * size // 2 for size in found[:-1] if size >= 16 and size % 3} <= set(found)
    assert all(size % 8 == 0 for size in found if size >= 8)
    assert len(found) > len(sizes(days=1))


def test_a_range_that_crosses_a_limit_is_told() -> None:
    said: dict[str, Any] = {"search": SMALL, "simulate": 0, "workers": 1, "prices": {"h100-sxm": 3.0}}
    winner = moesim.plan(SCENARIO, **said).winner
    assert winner is not None
    days, dollars = winner.summary["training_time"], winner.summary["cost"]
    tight = {"days": days.value * 1.001 / 86400, "dollars": dollars.value * 1.001}
    wide = {"days": days.high * 1.001 / 86400, "dollars": dollars.high * 1.001}
    told = {name: moesim.plan(SCENARIO, limits=limits, **said) for name, limits in (("tight", tight), ("wide", wide))}
    count = {name: sum("90 % range reaches" in line for line in plan.models[0].words) for name, plan in told.items()}
    assert count == {"tight": 2, "wide": 0}


def test_a_winner_at_the_edge_of_the_sizes_is_told() -> None:
    search = {**SMALL, "cluster.gpus": [8, 16], "parallelism.tensor": 1}
    said: dict[str, Any] = {"search": search, "simulate": 0, "workers": 1, "objective": "time"}
    free, bound = moesim.plan(SCENARIO, **said), moesim.plan(SCENARIO, limits={"gpus": 16}, **said)
    assert any("16 h100-sxm are the most that were tried" in line for line in free.models[0].words)
    assert not any("were tried" in line for line in bound.models[0].words)


def test_a_lopsided_range_is_told_on_both_sides() -> None:
    assert band(0.17, 0.45) == "−17 % to +45 %"
    assert band(0.2, 0.2) == "±20 %"


def test_an_unreachable_limit_of_gpus_costs_few_sizes() -> None:
    """More GPUs than the batch can be divided over are not tried, and of smaller ones for `time` only a few."""
    base = question().base
    found = gpu_counts(base, LimitsSpec(gpus=1 << 22), "time", batch=256)
    assert len(found) <= 8
    most = 256 * 8 * 16  # sequences x tensor within a domain x one layer a pipeline rank
    assert max(found) == most
    assert set(found) >= {most // 2, most // 4, most // 8}
    assert max(gpu_counts(base, LimitsSpec(gpus=1 << 22), "time")) == LARGEST


def test_divisors_of_the_largest_cluster_are_quick() -> None:
    assert divisors(LARGEST) == tuple(1 << power for power in range(23))
    assert divisors(104) == (1, 2, 4, 8, 13, 26, 52, 104)
    assert divisors(1) == (1,)


def test_a_users_own_size_is_taken_as_given() -> None:
    """13 nodes, and a batch of 2^8 that only a pipeline of 13 stages can do with."""
    search = {"cluster.gpus": 104, "cluster.fabric": "rail-optimized-400g", "schedule.kind": "auto"}
    asked = question(search=search)
    assert [cluster.gpus for cluster in asked.choices.clusters] == [104]
    assert 13 in asked.axes[0]["pipeline"]
    rows = enumerate_space(asked).rows
    assert len(rows)
    assert set(rows[:, COLUMNS.index("pipeline")]) == {13}


def test_the_most_gpus_are_tried_themselves() -> None:
    assert 104 in sizes("time", gpus=104)
    assert 192 in sizes("time", gpus=200)
    assert 200 not in sizes("time", gpus=200)  # 25 x 8: few batches divide by it
    assert sizes(gpus=6)[-2] == 6


def test_which_sizes_are_tried_and_why() -> None:
    base = question().base
    limits = LimitsSpec(gpus=100)
    first = sizes()[0]
    words = sizes_words(base, limits, sizes(gpus=100))
    assert f"{first:,} is the least power of two that could hold the states of the model" in words
    limits = LimitsSpec(gpus=20, days=5.0)
    counts = gpu_counts(base, limits)
    words = sizes_words(base, limits, counts)
    assert ", ".join(map(str, counts)) in words
    assert "least power of two that could keep the deadline at its peak rate" in words
    assert "20 the most up to 20" not in words
    assert "beyond the limit, to tell what it keeps out" in words
    noted = question(search={**SMALL, "cluster.gpus": "auto", "cluster.fabric": "rail-optimized-400g"}).notes
    assert any("GPUs are tried (assumed)" in note and "--gpus names others" in note for note in noted)


def test_overlaps_without_effect_are_one_candidate() -> None:
    """One expert-parallel rank exchanges nothing, one tensor-parallel rank collects nothing."""
    overlaps = {"overlap.expert_communication": [False, True], "overlap.weight_gradients": ["with-backward", "delayed"]}
    search = {**SMALL, **overlaps, "overlap.tensor_parallel": [True, False], "recompute": "none"}
    space = enumerate_space(question(search=search))
    at = {name: space.rows[:, COLUMNS.index(name)] for name in ("expert", "tensor", "overlap")}
    alone = (at["expert"] == 1) & (at["tensor"] == 1)
    assert alone.any()
    assert len(np.unique(at["overlap"][alone])) == 1
    assert len(np.unique(at["overlap"][(at["expert"] == 1) & (at["tensor"] == 2)])) == 2
    assert len(np.unique(at["overlap"][(at["expert"] == 8) & (at["tensor"] == 2)])) > 4
    assert space.rejected[SAME] > 0


def test_a_placement_that_the_screening_does_not_know_is_priced_one_by_one() -> None:
    """Experts packed by load: the table has what `estimate` says of them, and a note tells why it is slow."""
    search = {**SMALL, "parallelism.pipeline": 1, "parallelism.tensor": 1, "schedule.kind": "auto"}
    scenario = {**SCENARIO, "placement": {"strategy": "greedy"}}
    plan = moesim.plan(scenario, search=search, simulate=0, workers=1, objective="time")
    model = plan.models[0]
    assert any("experts held in order alone" in note and "at most 500" in note for note in model.notes)
    place = int(np.flatnonzero(~np.isnan(model.table["estimated_step_time"]))[0])
    step = moesim.estimate(model.candidate(place), even_if_infeasible=True).summary["step_time"].value
    assert step == pytest.approx(model.table["step_time"][place], rel=1e-6)
    assert model.candidate(place).placement.strategy == "greedy"
    assert sum(model.rejected.values()) + model.feasible == model.total


def test_training_keeps_one_copy_of_every_expert() -> None:
    with pytest.raises(UserError, match="training keeps one copy of every expert"):
        question(scenario={**SCENARIO, "placement": {"strategy": "global", "redundant_experts": 8}})
    assert any("redundant_experts: 0" in note for note in question().notes)
