"""The last road's verdict rules, and what a plan says would relax a limit is the least that does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from planner_fixture import SCENARIO, SMALL, question

import moesim
from moesim.plan_cli import infeasible
from moesim.planner.answers import Answer, Road
from moesim.planner.conclude import conclude
from moesim.planner.figures import Limit
from moesim.planner.plan import ModelPlan, Plan
from moesim.planner.pool import Pool
from moesim.planner.search import search
from moesim.planner.wording import beyond, relaxed_words
from moesim.scenario.scenario import Scenario

DAY = 86400.0
WHY = "the links are down"


class Doubtful(Pool):
    """A pool whose simulation says something else."""

    def __init__(self, verdict: Callable[[Scenario, Answer], Answer]) -> None:
        super().__init__(1)
        self.verdict = verdict

    def answers(
        self, road: Road, scenarios: Sequence[Scenario], heard: Callable[[int], None] | None = None
    ) -> list[Answer]:
        if road == "estimate":
            return super().answers(road, scenarios, heard)
        # The closed form stands for the simulation: it is quick, and what is said of its answers is the test's.
        found = super().answers("estimate", scenarios, heard)
        return [
            self.verdict(scenario, replace(answer, road=road))
            for scenario, answer in zip(scenarios, found, strict=True)
        ]


def refused(scenario: Scenario, answer: Answer) -> Answer:
    return Answer(answer.road, {}, {}, {}, (), WHY)


def longer(times: float) -> Callable[[Scenario, Answer], Answer]:
    """A simulation whose steps take so many times as long."""

    def verdict(scenario: Scenario, answer: Answer) -> Answer:
        slow = {
            name: replace(answer.summary[name], value=answer.summary[name].value * times)
            for name in ("step_time", "training_time", "gpu_hours")
        }
        return replace(answer, summary={**answer.summary, **slow})

    return verdict


def concluded(verdict: Callable[[Scenario, Answer], Answer], **said: Any) -> ModelPlan:
    asked = question(objective="time", **said)
    with Doubtful(verdict) as pool:
        return conclude(search(asked, pool, None), pool)


def fastest() -> float:
    """Days of the fastest layout of the small space, by the closed form."""
    winner = moesim.plan(SCENARIO, search=SMALL, simulate=0, workers=1, objective="time").winner
    assert winner is not None
    return winner.summary["training_time"].value / DAY


def test_a_candidate_that_the_simulation_refuses_is_out() -> None:
    best = moesim.plan(SCENARIO, search=SMALL, simulate=0, workers=1, objective="time").winner
    assert best is not None

    def verdict(scenario: Scenario, answer: Answer) -> Answer:
        return refused(scenario, answer) if scenario.parallelism == best.scenario.parallelism else answer

    model = concluded(verdict, simulate=2)
    assert model.winner is not None
    assert model.winner.road == "simulate"
    assert all(row.scenario.name != best.scenario.name for row in model.rows if row.road == "simulate")
    assert model.rejected["not simulated"] >= 1
    assert WHY in model.meanings["not simulated"]
    assert "not priced" not in model.rejected
    assert model.failed[0] == WHY
    assert sum(model.rejected.values()) + model.feasible == model.total
    assert not any("None of the" in sentence for sentence in model.words)


def test_no_simulated_layout_within_the_limits_is_said_plainly() -> None:
    """Steps take half as long again when simulated: what the closed form has left is told as such."""
    days = fastest() * 1.4
    model = concluded(longer(1.5), simulate=1, limits={"days": days})
    assert model.overturned
    assert model.winner is not None
    assert model.winner.road == "estimate"
    assert all(row.scenario.key != model.winner.scenario.key for row in model.overturned)
    told = model.words[0]
    assert told.startswith(f"None of the {len(model.overturned)} best layouts by the closed form keeps all limits")
    near = model.overturned[0].over["days"] * days
    assert f"would need {relaxed_words(Limit('days', days * DAY, 'run_seconds', 's'), near / days)}" in told
    assert "by the closed form alone" in told
    assert model.rejected["days"] >= len(model.overturned)


def test_all_refused_and_nothing_left_is_infeasible() -> None:
    """Every one of the few that the closed form finds within the limit fails when simulated."""
    model = concluded(refused, simulate=5, limits={"days": fastest() * 1.0001})
    assert not model.rows
    assert any(f"could not be simulated: {WHY}" in sentence for sentence in model.words)
    assert any(f"could not be simulated: {WHY}" in sentence for sentence in model.as_dict()["words"])
    assert "No candidate keeps all limits" in model.words[0]


def test_what_the_simulation_finds_within_the_limits_wins_although_the_closed_form_does_not() -> None:
    model = concluded(longer(0.5), simulate=1, limits={"days": fastest() * 0.9})
    assert model.winner is not None
    assert model.winner.road == "simulate"


def planned(limits: dict[str, Any], **said: Any) -> Plan:
    more: dict[str, Any] = {"search": SMALL, "simulate": 0, "workers": 1, "prices": {"h100-sxm": 3.0}, **said}
    return moesim.plan(SCENARIO, limits=limits, **more)


LIMITS: list[tuple[str, float, Callable[[float], float]]] = [
    ("days", 1.0, lambda needed: needed / DAY),
    ("dollars", 500.0, lambda needed: needed),
    ("memory_headroom", 0.9, lambda needed: 1.0 - needed),
    ("power", 3000.0, lambda needed: needed),
]


@pytest.mark.parametrize(("key", "tight", "as_said"), LIMITS, ids=[limit[0] for limit in LIMITS])
@pytest.mark.parametrize("simulate", [0, 2])
def test_a_relaxed_limit_is_the_least_that_admits_a_candidate(
    key: str, tight: float, as_said: Callable[[float], float], simulate: int
) -> None:
    plan = planned({key: tight}, simulate=simulate)
    assert not plan.feasible
    one = next(one for one in plan.models[0].relaxations if one.limit == key)
    assert one.needed == pytest.approx(one.row.over[key] * one.allowed)
    assert one.row.road == ("simulate" if simulate else "estimate")
    if simulate:
        return
    admitted = planned({key: as_said(one.needed * (1 + 1e-9))})
    assert admitted.winner is not None
    assert admitted.winner.scenario.key == one.row.scenario.key
    assert not planned({key: as_said(one.needed * (1 - 1e-4))}).feasible


def test_the_words_never_say_less_than_is_needed() -> None:
    plan = planned({"days": 1.0})
    said = next(sentence for sentence in plan.models[0].words if "would relax with days" in sentence)
    days = float(said.split("days ")[1].split(" ")[0])
    assert planned({"days": days}).feasible
    assert "would relax with days" in infeasible(plan)
    limit = Limit("days", 30 * DAY, "run_seconds", "s", DAY)
    assert relaxed_words(limit, 30.001 / 30) == "days 30.1 instead of 30"
    assert relaxed_words(limit, 1234.1 / 30) == "days 1,240 instead of 30"
    assert relaxed_words(Limit("gpus", 8.0, "gpus", ""), 13.0) == "gpus 104 instead of 8 (of the sizes tried)"
    headroom = Limit("memory_headroom", 0.9, "memory_share", "fraction")
    assert relaxed_words(headroom, 0.95678 / 0.9) == "memory_headroom 4.32 % instead of 10 %"
    assert relaxed_words(headroom, 1.2 / 0.9) == "1.2 x a GPU's memory"
    assert beyond(1.0648) == "6.48 % more than allowed"
    assert beyond(10.2) == "10.2 x what is allowed"


def test_a_runner_up_that_was_not_simulated_is_told_as_such() -> None:
    """Simulated steps are three times as long: the one simulated layout wins, others are better by the closed form."""
    model = concluded(longer(3.0), simulate=1)
    assert model.winner is not None
    assert [row.road for row in model.rows[:2]] == ["simulate", "estimate"]
    assert "by the closed form; simulate more to know" in model.words[1]
    level = concluded(longer(1.0), simulate=1)
    assert ", by the closed form)" in level.words[1]
    assert not any("-0." in sentence for sentence in level.words)
