"""Plans: the optimum is found, limits bind as stated, what is infeasible says why, the same plan is the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planner_fixture import SCENARIO, SMALL, question

import moesim
from moesim.errors import UserError
from moesim.planner.explain import label
from moesim.planner.plan import Plan, Row
from moesim.planner.pool import Pool
from moesim.planner.search import quick
from moesim.planner.sieve import screened
from moesim.planner.space import candidates, enumerate_space
from moesim.screening import scenario_of
from moesim.units import show

DAY = 86400.0


def planned(search: dict[str, Any] = SMALL, **said: Any) -> Plan:
    """A plan of the small space in this process, by the closed form unless said."""
    return moesim.plan(SCENARIO, search=search, **{"simulate": 0, "workers": 1, **said})


@pytest.fixture(scope="module")
def brute() -> list[moesim.Result]:
    """Every legal candidate of the small space, estimated one by one."""
    asked = question()
    rows = candidates(enumerate_space(asked).rows)
    found = [scenario_of(asked.base, asked.choices, rows, row) for row in range(len(rows))]
    return [moesim.estimate(scenario, even_if_infeasible=True) for scenario in found]


def figure(result: moesim.Result, name: str) -> float:
    return result.summary[name].value


def test_the_optimum_is_that_of_brute_force(brute: list[moesim.Result]) -> None:
    able = [figure(result, "step_time") for result in brute if figure(result, "fits_in_memory") <= 0.9]
    winner = planned(objective="time").winner
    assert winner is not None
    assert winner.summary["step_time"].value == pytest.approx(min(able), rel=1e-9)


def test_screening_is_the_closed_form(brute: list[moesim.Result]) -> None:
    """What the sieve goes by is what `estimate` says."""
    asked = question()
    found = screened(asked, enumerate_space(asked).rows, None)
    steps = np.array([figure(result, "step_time") for result in brute])
    memory = np.array([figure(result, "memory_per_gpu") for result in brute])
    assert np.allclose(found.figures.step_seconds, steps, rtol=0.02)
    assert np.allclose(found.memory, memory, rtol=0.02)


def test_every_candidate_has_one_reason() -> None:
    model = planned(limits={"days": 5}).models[0]
    assert sum(model.rejected.values()) + model.feasible == model.total == 288
    assert set(model.rejected) == set(model.meanings)
    assert len(model.table["gpus"]) == model.screened
    assert (model.table["bound_by"] == "").sum() == model.feasible


@pytest.mark.parametrize(
    ("limits", "name", "most"),
    [
        ({"days": 4.5}, "training_time", 4.5 * DAY),
        ({"dollars": 2500}, "cost", 2500.0),
        ({"memory_headroom": 0.5}, "fits_in_memory", 0.5),
    ],
)
def test_limits_bind_as_stated(limits: dict[str, Any], name: str, most: float, brute: list[moesim.Result]) -> None:
    plan = planned(limits=limits, prices={"h100-sxm": 3.0})
    model = plan.models[0]
    key = next(iter(limits))
    assert model.rows
    assert all(row.summary[name].value <= most for row in model.rows)
    assert model.rejected[key] > 0
    price = {"cost": 3.0}.get(name, 1.0)
    unit = "gpu_hours" if name == "cost" else name
    headroom = 1.0 - limits.get("memory_headroom", 0.1)
    able = [figure(result, unit) * price <= most and figure(result, "fits_in_memory") <= headroom for result in brute]
    assert model.feasible == sum(able)


def test_drops_are_searched_where_they_are_allowed() -> None:
    search = {**SMALL, "parallelism.pipeline": 1, "parallelism.tensor": 1, "recompute": "none"}
    none = planned(search).models[0]
    some = planned(search, limits={"dropped_fraction": "2%"}).models[0]
    assert set(none.table["capacity"]) == {0.0}
    assert set(some.table["capacity"]) == {0.0, 1.0, 1.25, 1.5}
    assert all(row.figures.dropped[0] <= 0.02 for row in some.rows)
    kept = some.table["bound_by"] == ""
    assert (some.table["dropped_token_fraction"][kept] <= 0.02).all()
    assert some.rejected["dropped_fraction"] > 0


def test_objectives_differ_as_they_say() -> None:
    sizes = {**SMALL, "cluster.gpus": [8, 16, 32], "parallelism.tensor": 1}
    said: dict[str, Any] = {"limits": {"days": 4.5}, "prices": {"h100-sxm": 3.0}}
    best = {name: planned(sizes, objective=name, **said).winner for name in ("cost", "time", "fewest-gpus")}
    gpus = {name: row.scenario.cluster.gpus for name, row in best.items() if row}
    cost = {name: row.summary["cost"].value for name, row in best.items() if row}
    time = {name: row.summary["training_time"].value for name, row in best.items() if row}
    assert min(time, key=lambda name: time[name]) == "time"
    assert gpus["time"] == 32
    assert cost["cost"] == min(cost.values())
    assert gpus["fewest-gpus"] == min(gpus.values())
    per_dollar = planned(sizes, objective="tokens-per-dollar", **said).winner
    assert per_dollar is not None
    assert best["cost"] is not None
    assert per_dollar.scenario == best["cost"].scenario


def test_nothing_feasible_is_an_answer_that_says_what_would_relax_it() -> None:
    plan = planned(limits={"days": 1})
    model = plan.models[0]
    assert not plan.feasible
    assert model.winner is None
    assert model.closest is not None
    assert list(model.closest.over) == ["days"]
    needed = {one.limit: one.needed / DAY for one in model.relaxations}
    fastest = planned(objective="time").winner
    assert fastest is not None
    assert needed["days"] == pytest.approx(fastest.summary["training_time"].value / DAY)
    assert planned(limits={"days": needed["days"] * 1.0001}).feasible
    assert "days" in model.words[0]
    assert any("would relax" in sentence for sentence in model.words)


def test_the_words_name_what_differs() -> None:
    plan = planned(simulate=2, prices={"h100-sxm": 3.0})
    model = plan.models[0]
    first, second = model.rows[:2]
    assert first.road == second.road == "simulate"
    assert model.words[0].startswith(f"The cheapest is {label(first)}: {show(first.figures.run_seconds[0], 's')}")
    assert "runner-up" in model.words[1]
    name = next(key for key in first.layout if first.layout[key] != second.layout[key])
    assert name.rpartition(".")[2] in " ".join(model.words) or name in ("schedule.kind", "overlap.expert_communication")
    share = 1 - first.summary["cost"].value / second.summary["cost"].value
    assert f"{100 * share:.3g} %" in model.words[1]
    need = first.summary["step_time"].value
    assert any(f"below {show(need, 's')}" in sentence for sentence in model.words)


def test_other_gpus_are_told_at_which_price_they_win() -> None:
    search = {**SMALL, "cluster.gpu": ["h100-sxm", "h200-sxm"], "parallelism.tensor": 1}
    prices = {"h100-sxm": 2.0, "h200-sxm": 9.0}
    model = planned(search, prices=prices).models[0]
    assert model.winner is not None
    assert model.winner.scenario.cluster.gpu.name == "h100-sxm"
    told = next(sentence for sentence in model.words if "h200-sxm" in sentence and "would win below" in sentence)
    below = float(told.split("below $")[1].split(" ")[0])
    cheaper = planned(search, prices={**prices, "h200-sxm": below * 0.99}).winner
    dearer = planned(search, prices={**prices, "h200-sxm": below * 1.01}).winner
    assert cheaper is not None
    assert dearer is not None
    assert cheaper.scenario.cluster.gpu.name == "h200-sxm"
    assert dearer.scenario.cluster.gpu.name == "h100-sxm"


def test_several_models_are_planned_side_by_side() -> None:
    search = {**SMALL, "parallelism.pipeline": 1, "parallelism.expert": [1, 8]}
    plan = planned(search, models=["olmoe-1b-7b", "qwen3-30b-a3b"])
    assert [model.model for model in plan.models] == ["olmoe-1b-7b", "qwen3-30b-a3b"]
    alone = planned(search, models=["qwen3-30b-a3b"])
    assert alone.models[0].as_dict() == plan.models[1].as_dict()


def test_the_front_of_the_rows_is_all_that_is_undominated() -> None:
    def told(row: Row) -> tuple[float, ...]:
        figures = row.figures
        return (
            *(float(each[0]) for each in (figures.run_seconds, figures.cost, figures.memory_share, figures.dropped)),
        )

    model = planned(objective="time").models[0]
    rows = [told(row) for row in model.rows]
    front = [
        one
        for one in rows
        if not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in rows)
    ]
    assert len(front) > 1
    assert [told(row) for row in model.pareto] == front


def test_the_same_plan_is_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    said: dict[str, Any] = {"simulate": 2, "limits": {"days": 6}}
    names = None
    for folder, workers in (("one", 1), ("two", 2)):
        written = planned(workers=workers, **said).save(tmp_path / folder)
        names = [path.name for path in written]
    assert names == ["candidates.parquet", "winner.yaml", "plan.html", "plan.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_files_hold_what_was_planned(tmp_path: Path) -> None:
    plan = planned(simulate=1)
    plan.save(tmp_path)
    winner = plan.winner
    assert winner is not None
    again = moesim.load(tmp_path / "winner.yaml")
    assert again.key == winner.scenario.key
    estimated = moesim.estimate(again).summary["step_time"].value
    assert estimated == pytest.approx(winner.summary["step_time"].value, rel=0.02)
    table = pd.read_parquet(tmp_path / "candidates.parquet")
    assert len(table) == plan.models[0].screened
    assert table.bound_by.eq("").sum() == plan.models[0].feasible
    assert table.simulated_step_time.notna().sum() == 1
    best = table[table.bound_by == ""].iloc[0]
    assert best.cost == table[table.bound_by == ""].cost.min()


def test_a_worker_that_dies_costs_one_candidate_and_no_more() -> None:
    asked = question()
    rows = candidates(enumerate_space(asked).rows)
    scenarios = [scenario_of(asked.base, asked.choices, rows, row) for row in range(5)]
    with Pool(2) as pool:
        pool.answers("estimate", scenarios)
        pool._all[0].kill()
        pool._all[0].wait()
        found = pool.answers("estimate", scenarios)
    assert sum(answer.refusal is not None for answer in found) == 1
    assert sum(bool(answer.summary) for answer in found) == 4


def test_the_shortlists_simulation_is_near_the_whole_one() -> None:
    scenario = planned(simulate=0).winner
    assert scenario is not None
    fine = scenario.scenario.model_copy(
        update={"simulation": scenario.scenario.simulation.model_copy(update={"microbatch_samples": 8})}
    )
    whole = moesim.simulate(fine).summary["step_time"].value
    assert moesim.simulate(quick(fine)).summary["step_time"].value == pytest.approx(whole, rel=0.02)


def test_no_legal_layout_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"none of .* is a legal layout of olmoe-1b-7b; broken rules: heads"):
        planned({**SMALL, "parallelism.tensor": 3, "parallelism.pipeline": 1, "cluster.gpus": 24})


def test_the_chart_shows_front_and_others() -> None:
    """Every candidate within the limits is a point, and front and others are told apart."""
    model = planned(objective="time").models[0]
    drawn = model.chart().to_dict()
    points = next(iter(drawn["datasets"].values())) if "datasets" in drawn else drawn["data"]["values"]
    assert len(points) == model.feasible
    assert {point["front"] for point in points} == {"front", "other"}
    low, high = drawn["encoding"]["x"]["scale"]["domain"]
    assert all(low < point["days"] < high for point in points)
