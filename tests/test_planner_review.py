"""What a reviewer found in plans: default sizes and limits, ranges that cross a limit, words where nothing fits."""

from __future__ import annotations

from typing import Any

import pytest
from planner_fixture import SCENARIO, SMALL, question

import moesim
from moesim.plan_cli import infeasible
from moesim.planner.defaults import gpu_counts, least_held
from moesim.planner.explain import _band
from moesim.planner.plan import Plan
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
    assert _band(0.17, 0.45) == "−17 % to +45 %"
    assert _band(0.2, 0.2) == "±20 %"
