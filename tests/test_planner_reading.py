"""What a plan may say: defaults that follow from model and cluster, names that are resolved, mistakes that are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planner_fixture import SCENARIO, SMALL, question, spec

import moesim
from moesim.errors import ScenarioError, UserError
from moesim.planner import defaults, sizes
from moesim.planner.reading import questions
from moesim.planner.run import load_spec, read_spec
from moesim.planner.space import enumerate_space
from moesim.specs import parameters
from moesim.specs.plan import LimitsSpec

SHIPPED = sorted((Path(__file__).parents[1] / "scenarios" / "plans").glob("*.yaml"))
PLANS = [path for path in SHIPPED if "-serving-" not in path.stem]  # those of serving: test_planner_serving.py


def told(**said: Any) -> str:
    """All that is wrong with a plan."""
    with pytest.raises(UserError) as caught:
        questions(read_spec({"scenario": SCENARIO, "search": SMALL, **said}, "plan"), Path())
    return str(caught.value)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_shipped_plans_are_questions(path: Path) -> None:
    found = load_spec(path)
    assert found.question.endswith("?")
    asked = questions(found, path.parent)[0]
    assert asked.choices.clusters
    assert asked.spec.limits.model_dump(exclude_none=True)


def test_unknown_names_come_with_the_nearest() -> None:
    assert "nearest: olmoe-1b-7b" in told(models=["olmoe-1b-8b"])
    assert "nearest: h100-sxm" in told(search={"cluster.gpu": ["h100-sxx"]})
    assert "prices.h100: unknown gpu 'h100'; nearest: h100" in told(prices={"h100": 2})
    assert "nearest: deepep-normal" in told(search={"dispatcher.kind": "deepep-norma"})
    assert "nearest: dualpipe" in told(search={"schedule.kind": "dualpip"})
    assert "search.paralelism.tensor: unknown field; nearest: parallelism.tensor" in told(
        search={"paralelism.tensor": [1]}
    )
    assert "limits.day: unknown key; nearest: days" in told(limits={"day": 3})
    assert "objective: 'cheap' is not known" in told(objective="cheap")


def test_impossible_values_are_told_all_at_once() -> None:
    said = told(
        search={"parallelism.tensor": [0, 2], "recompute": ["everything"], "routing.capacity": [-1], "overlap": [3]}
    )
    for place in ("parallelism.tensor.0", "recompute.0", "routing.capacity.0", "overlap.0"):
        assert f"search.{place}" in said
    assert "expected a list of 1 to" in told(search={"parallelism.tensor": []})
    assert "one copy of every expert" in told(search={"placement.redundant_experts": [0, 8]})


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"days": 0}, "limits.days: must be above 0"),
        ({"days": -3}, "limits.days: must be above 0"),
        ({"dollars": "10 GB"}, "limits.dollars"),
        ({"dropped_fraction": 1.5}, "limits.dropped_fraction: must be at most 1"),
        ({"gpus": 0}, "limits.gpus"),
        ({"memory_headroom": 2}, "limits.memory_headroom: must be at most 0.95"),
        ({"dollars": 5}, "limits.dollars: needs prices"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], words: str) -> None:
    assert words in told(limits=limits)


def test_what_a_limit_or_objective_needs_is_asked_for() -> None:
    bare = {**SCENARIO, "workload": {"global_batch": 256}}
    assert "limits.days: needs workload.total_tokens" in told(scenario=bare, limits={"days": 3})
    assert "limits.days: objective fewest-gpus needs a deadline" in told(objective="fewest-gpus")
    both = {**SMALL, "cluster.gpu": ["h100-sxm", "h200-sxm"]}
    assert "prices.h200-sxm: is missing" in told(search=both, prices={"h100-sxm": 2})
    assert "which GPUs?" in told(scenario={**SCENARIO, "cluster": {}})
    assert "which model?" in told(scenario={key: value for key, value in SCENARIO.items() if key != "model"})
    assert "workload.global_batch: is required" in told(scenario={**SCENARIO, "workload": {}})
    assert "scenario.overlap: expected a mapping" in told(scenario={**SCENARIO, "overlap": 3})


def test_a_usual_batch_follows_from_the_tokens() -> None:
    """Step Law: 0.58 x (10^12)^0.571 = 4.14 M tokens, 1,011 sequences of 4,096; in powers of two 1,024."""
    assert defaults.global_batch(1e12, 4096, (256,)) == 1024
    assert defaults.global_batch(1e12, 4096, (72, 144)) == 9 * 128
    asked = question(scenario={**SCENARIO, "workload": {"total_tokens": "1T"}})
    assert asked.base.workload.global_batch == 1024
    assert any("Step Law" in note and "assumed" in note for note in asked.notes)


def test_cluster_sizes_start_where_arithmetic_and_memory_allow() -> None:
    """Qwen3-235B: 18 bytes a parameter need 50 GPUs of 80 GiB; 1T tokens in 30 days at an H100's peak need 58."""
    base = {"model": "qwen3-235b-a22b", "workload": {"total_tokens": "1T"}}
    asked = question(scenario=base, search={"cluster.gpu": "h100-sxm"}, limits={"days": 30})
    assert [cluster.gpus for cluster in asked.choices.clusters] == [64, 128, 256, 512, 1024]
    total = parameters.count(asked.base.model).total
    assert 32 * 85.9e9 < 18 * total < 64 * 85.9e9
    few = question(scenario=base, search={"cluster.gpu": "h100-sxm"}, limits={"days": 30, "gpus": 200})
    # The most that a usual batch divides by, and one size beyond the limit, to tell what it keeps out.
    assert [cluster.gpus for cluster in few.choices.clusters] == [64, 128, 192, 256]


def test_a_rack_of_72_works_with_64() -> None:
    assert sizes.filled_domain(256, 72) == 64
    assert sizes.filled_domain(144, 72) == 72
    assert sizes.filled_domain(8, 72) == 72
    assert sizes.filled_domain(100, 8) == 8
    asked = question(search={"cluster.gpu": "gb200-nvl72", "cluster.gpus": 256})
    assert asked.choices.clusters[0].gpus_per_domain == 64
    assert any("64 of each domain's 72" in note for note in asked.notes)


def test_the_beginning_of_a_models_name_is_enough_where_it_is_the_only_one() -> None:
    asked = question(models=["qwen3-235b"])
    assert asked.base.model.name == "qwen3-235b-a22b"
    assert "model qwen3-235b is qwen3-235b-a22b" in asked.notes
    assert "unknown model 'qwen3'" in told(models=["qwen3"])


def test_gpus_that_cannot_run_it_are_left_out_and_named() -> None:
    """No fp8 on an A100."""
    scenario = {**SCENARIO, "precision": {"compute": "fp8"}}
    asked = question(scenario=scenario, search={**SMALL, "cluster.gpu": ["a100-sxm-80g", "h100-sxm"]})
    assert [cluster.gpu.name for cluster in asked.choices.clusters] == ["h100-sxm"]
    assert any("a100-sxm-80g is left out: precision.compute" in note for note in asked.notes)
    with pytest.raises(ScenarioError, match="a100-sxm-80g has no fp8 rate"):
        question(scenario=scenario, search={"cluster.gpu": "a100-sxm-80g"})


def test_defaults_follow_from_model_and_cluster() -> None:
    asked = question(search={}, limits={"dropped_fraction": 0.01})
    axes = asked.axes[0]
    assert axes["tensor"] == (1, 2, 4, 8)
    assert axes["expert"] == (1, 2, 4, 8)
    assert axes["pipeline"] == (1, 2, 4, 8)
    assert axes["context"] == (1,)
    assert asked.choices.capacities[0] == "dropless"
    assert len(asked.choices.capacities) == 1 + len(defaults.FACTORS)
    assert defaults.capacities(asked.base, LimitsSpec()) == ("dropless",)


def test_a_scenario_is_a_plan_too() -> None:
    """A loaded scenario: its own cluster stays, and its fabric does not follow it to other GPUs."""
    scenario = moesim.load(SCENARIO)
    plan = moesim.plan(scenario, search=SMALL, simulate=0, workers=1, objective="time")
    assert plan.winner is not None
    assert plan.winner.scenario.cluster == scenario.cluster
    search = {**SMALL, "cluster.gpu": "gb200-nvl72", "recompute": "none", "parallelism.pipeline": 1}
    elsewhere = moesim.plan(scenario, search=search, simulate=0, workers=1).winner
    assert elsewhere is not None
    assert elsewhere.scenario.cluster.fabric.name == "nvl72-400g"


def test_lists_that_make_too_many_combinations_are_refused() -> None:
    degrees = list(range(1, 65))
    search = {f"parallelism.{name}": degrees for name in ("tensor", "pipeline", "expert", "expert_tensor")}
    with pytest.raises(UserError, match="shorten the lists"):
        enumerate_space(question(search=search))


def test_spec_reads_units() -> None:
    found = spec(limits={"dollars": "2 M$", "power": "3 MW", "dropped_fraction": "1 %"}).limits
    assert (found.dollars, found.power, found.dropped_fraction) == (2e6, 3e6, 0.01)
