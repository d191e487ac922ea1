"""A scenario whose own layout is searched anew: one of the candidates, answered like the best, and told by its rank."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planner_fixture import SCENARIO

import moesim
from moesim.planner.plan import ModelPlan
from moesim.planner.run import load_spec
from moesim.planner.table import pieces
from moesim.results.table import plain_table

NOTE = "the scenario's own layout is searched anew"
OWN: dict[str, Any] = {
    **SCENARIO,
    "parallelism": {"tensor": 2, "expert": 8},
    "recompute": ["moe_act"],
    "schedule": "1f1b",
    "overlap": {"expert_communication": True},
}
SEARCH: dict[str, Any] = {
    "parallelism.tensor": [1, 2],
    "parallelism.pipeline": [1, 2],
    "parallelism.virtual_pipeline": 1,
    "parallelism.expert": [1, 8],
    "parallelism.expert_tensor": 1,
    "workload.micro_batch": [1, 2],
    "recompute": "none",
    "schedule.kind": "auto",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN), encoding="utf-8")
    return path


def planned(source: Any, **said: Any) -> ModelPlan:
    more: dict[str, Any] = {"search": SEARCH, "objective": "time", "simulate": 1, "workers": 1, **said}
    return moesim.plan(source, **more).models[0]


@pytest.fixture(scope="module")
def model(file: Path) -> ModelPlan:
    return planned(file)


def test_the_own_layout_is_simulated_and_ranked(file: Path, model: ModelPlan) -> None:
    own = model.own
    assert own is not None
    assert own.row.road == "simulate"
    asked = moesim.load(file)
    assert own.row.scenario.parallelism == asked.parallelism
    assert (own.row.scenario.recompute, own.row.scenario.overlap) == (asked.recompute, asked.overlap)
    assert any(row.scenario == own.row.scenario for row in model.rows)
    assert any(note.startswith(NOTE) for note in model.notes)
    place = int(
        np.flatnonzero(~np.isnan(model.table["simulated_step_time"]) & (model.table["recompute"] == "moe_act"))[0]
    )
    able = model.table["bound_by"] == ""
    ahead = (model.table["step_time"][able] < model.table["step_time"][place] * (1 - 1e-6)).sum()
    assert own.rank == pytest.approx(1 + ahead, abs=2)  # the few that were simulated may change places
    assert own.of == able.sum() == model.feasible


def test_the_words_tell_rank_and_distance(model: ModelPlan) -> None:
    assert model.own is not None
    assert model.winner is not None
    told = next(sentence for sentence in model.words if sentence.startswith("Your layout"))
    assert f"rank {model.own.rank:,} of {model.own.of:,} by time" in told
    own, best = (row.summary["training_time"].value for row in (model.own.row, model.winner))
    assert float(re.search(r"it takes ([\d.]+) % more time", told)[1]) == pytest.approx(
        100 * (own / best - 1), rel=0.01
    )  # type: ignore[index]
    assert json.loads(json.dumps(model.as_dict()))["own_layout"]["rank"] == model.own.rank


def test_a_budget_does_not_lose_it(file: Path) -> None:
    model = planned(file, candidates=5, simulate=0)
    assert model.own is not None
    assert model.own.row.scenario.recompute == ("moe_act",)
    assert model.screened <= 6
    assert sum(model.rejected.values()) + model.feasible == model.total


def test_its_values_are_not_searched_beyond_it(model: ModelPlan) -> None:
    """Recompute of moe_act is in nobody's list: the scenario's own layout alone has it."""
    assert (model.table["recompute"] == "moe_act").sum() == 1
    assert sum(model.rejected.values()) + model.feasible == model.total


def test_a_layout_that_breaks_a_limit_says_what_it_needs(file: Path) -> None:
    winner = planned(file, simulate=0).winner
    assert winner is not None
    days = winner.summary["training_time"].value * 1.001 / 86400
    model = planned(file, simulate=0, limits={"days": days})
    assert model.own is not None
    assert list(model.own.row.over) == ["days"]
    told = next(sentence for sentence in model.words if sentence.startswith("Your layout"))
    assert "does not keep the limits: it would need days" in told
    assert model.own.of == model.feasible + 1


def test_the_winner_may_be_the_own_layout(tmp_path: Path) -> None:
    best = planned(OWN | {"overlap": {}}, search={**SEARCH, "overlap.expert_communication": [False, True]}).winner
    assert best is not None
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(best.scenario.document()), encoding="utf-8")
    model = planned(path)
    assert model.own is not None
    assert model.own.rank == 1
    assert any("is the winner: rank 1 of" in sentence for sentence in model.words)


def test_what_stays_is_not_searched_anew(tmp_path: Path) -> None:
    """A plan file and a mapping keep the layout that they state; a plan file that names a scenario's file does not."""
    assert planned(OWN, search={}, simulate=0).own is None
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN), encoding="utf-8")
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"scenario": "mine.yaml", "search": SEARCH, "simulate": 0}), encoding="utf-8")
    assert load_spec(path).scenario == "mine.yaml"
    assert moesim.plan(path, workers=1).models[0].own is not None


def test_a_cluster_that_is_not_searched_is_compared_with(file: Path) -> None:
    search = {**SEARCH, "cluster.gpus": 16, "cluster.fabric": "rail-optimized-400g"}
    model = planned(file, search=search, simulate=0)
    assert model.own is not None
    assert not model.own.searched
    assert model.own.row.scenario.cluster.gpus == 8
    assert all(row.scenario.cluster.gpus == 16 for row in model.rows)
    assert any("8 h100-sxm (fabric" in note and "not among the clusters searched" in note for note in model.notes)
    dollars = {**search, "cluster.gpu": "h200-sxm"}
    unpriced = planned(file, search=dollars, simulate=0, prices={"h200-sxm": 3.0})
    assert unpriced.own is None
    assert any("is not compared" in note for note in unpriced.notes)


def test_an_own_layout_that_is_illegal_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**OWN, "parallelism": {"tensor": 2, "expert": 3}}), encoding="utf-8")
    model = planned(path, simulate=0)
    assert model.own is None
    assert any("own layout is no candidate: parallelism.expert" in note for note in model.notes)
    assert model.rows


def test_the_table_marks_it(file: Path) -> None:
    plan = moesim.plan(file, search=SEARCH, objective="time", simulate=1, workers=1)
    screen = plain_table("").__class__  # rich's table
    cells = [
        str(cell) for piece in pieces(plan) if isinstance(piece, screen) for c in piece.columns for cell in c.cells
    ]
    assert sum("(your layout)" in cell for cell in cells) == 1
