"""The answer to a plan of serving: the rows worth reading, the Pareto front, why the rest was rejected, words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.planner.answers import Road
from moesim.planner.serving_figures import Figures
from moesim.planner.serving_reading import Question
from moesim.planner.serving_space import Candidate, scenario_of
from moesim.planner.serving_spec import ServingPlanSpec
from moesim.provenance import Quantity
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec


@dataclass(frozen=True)
class Row:
    """One deployment that a road answered. `over`: the limits it breaks, with the figure over what is allowed;
    `pareto`: whether no other row beats it in every respect; `place`: of the candidate, None for one not searched."""

    scenario: ServingScenario
    road: Road
    summary: dict[str, Quantity]
    breakdown: dict[str, float]
    memory: dict[str, float]
    notes: tuple[str, ...]
    figures: Figures
    over: dict[str, float]
    place: int | None = None
    pareto: bool = False

    @cached_property
    def layout(self) -> dict[str, Any]:
        """The searched fields by their names in a scenario."""
        scenario, engine = self.scenario, self.scenario.engine
        apart = len(scenario.pools) > 1
        found: dict[str, Any] = {
            "cluster.gpu": scenario.cluster.gpu.name,
            "cluster.gpus": scenario.cluster.gpus,
            "cluster.fabric": scenario.cluster.fabric.name,
            "disaggregated": apart,
        }
        for pool in scenario.pools:
            where = f"disaggregated.{pool.phase}" if apart else "instance"
            found |= {f"{where}.instances": pool.count, **_degrees(where, pool.instance)}
        return found | {
            "engine.token_budget": engine.token_budget,
            "engine.two_batch_overlap": engine.two_batch_overlap,
            "placement.redundant_experts": scenario.placement.redundant_experts,
            "dispatcher.prefill": scenario.dispatcher.prefill,
            "dispatcher.decode": scenario.dispatcher.decode,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.scenario.name,
            "road": self.road,
            "pareto": self.pareto,
            "layout": self.layout,
            "summary": {name: quantity.as_dict() for name, quantity in self.summary.items()},
            "breakdown": self.breakdown,
            "memory": self.memory,
            "over": {key: value if np.isfinite(value) else None for key, value in self.over.items()},
            "notes": list(self.notes),
        }


def _degrees(where: str, layout: InstanceSpec) -> dict[str, Any]:
    return {
        f"{where}.gpus": layout.gpus,
        f"{where}.tensor": layout.tensor,
        f"{where}.pipeline": layout.pipeline,
        f"{where}.expert": layout.expert,
        f"{where}.expert_tensor": layout.expert_split,
        f"{where}.attention_data_parallel": layout.replicas,
    }


@dataclass(frozen=True)
class Relaxation:
    """What a weaker limit would bring: the limit's key, what it allows, what it would have to allow for `row`, which
    breaks no other, and the objective of the row over the winner's (None without a winner)."""

    limit: str
    allowed: float
    needed: float
    unit: str
    row: Row
    objective_ratio: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**{key: value for key, value in vars(self).items() if key != "row"}, "row": self.row.as_dict()}


@dataclass(frozen=True)
class ServingModelPlan:
    """One model's answer.

    `rows`: deployments that keep all limits, best first: the simulated ones, then those of the Pareto front that were
    estimated; empty where nothing is feasible, and then `closest` comes nearest. Of `total` combinations `judged` are
    legal and were judged by the closed form, from `states` steady states of pools of engines; `feasible` keep every
    limit, every other one has its one reason in `rejected` (codes; `meanings` in words). `overturned`: simulated rows
    that break a limit which the closed form found kept. `table`: columns of the candidates worth keeping
    (`moesim.planner.serving_columns`), the best first; `places`: the candidates themselves. `own`: the scenario's own
    deployment, where it states one.
    """

    question: Question
    rows: tuple[Row, ...]
    closest: Row | None
    total: int
    judged: int
    states: int
    feasible: int
    rejected: dict[str, int]
    meanings: dict[str, str]
    relaxations: tuple[Relaxation, ...]
    best_by_gpu: tuple[Row, ...]
    overturned: tuple[Row, ...]
    failed: tuple[str, ...]
    own: Row | None
    notes: tuple[str, ...]
    table: dict[str, NDArray[Any]]
    places: tuple[Candidate, ...]
    words: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The model's name."""
        return self.question.base.model.name

    @property
    def winner(self) -> Row | None:
        """The best row, where any keeps the limits."""
        return self.rows[0] if self.rows else None

    @property
    def pareto(self) -> tuple[Row, ...]:
        """The rows that no other beats in cost, both latencies and tokens/s/GPU at once."""
        return tuple(row for row in self.rows if row.pareto)

    def candidate(self, place: int) -> ServingScenario:
        """The whole scenario of one line of `table`."""
        return scenario_of(self.question, self.places[place])

    def chart(self) -> Any:
        """Latency of output tokens against cost of the candidates, with the Pareto front (altair)."""
        # altair is imported when a picture is wanted.
        return import_module("moesim.planner.charts").serving_pareto(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything but the large table."""
        rejected = self.rejected.items()
        return {
            "model": self.model,
            "total": self.total,
            "judged": self.judged,
            "steady_states": self.states,
            "feasible": self.feasible,
            "rejected": {code: {"candidates": count, "meaning": self.meanings[code]} for code, count in rejected},
            "winner": self.winner.scenario.name if self.winner else None,
            "rows": [row.as_dict() for row in self.rows],
            "closest": self.closest.as_dict() if self.closest else None,
            "relaxations": [one.as_dict() for one in self.relaxations],
            "overturned": [row.as_dict() for row in self.overturned],
            "could_not_be_simulated": list(self.failed),
            "own_layout": self.own.as_dict() if self.own else None,
            "best_by_gpu": [row.as_dict() for row in self.best_by_gpu if row is not self.winner],
            "words": list(self.words),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ServingPlan:
    """The answer to a plan of serving: one `ServingModelPlan` a model."""

    spec: ServingPlanSpec
    models: tuple[ServingModelPlan, ...]

    @property
    def feasible(self) -> bool:
        """Whether any model has a deployment within the limits."""
        return any(model.rows for model in self.models)

    @property
    def winner(self) -> Row | None:
        """The best row of the first model."""
        return self.models[0].winner

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "moesim_serving_plan": 1,
            "name": self.spec.name,
            "question": self.spec.question,
            "objective": self.spec.objective,
            "limits": self.models[0].question.limits.model_dump(mode="json", exclude_none=True),
            "prices": self.spec.prices,
            "models": [model.as_dict() for model in self.models],
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes plan.json, plan.html, candidates.parquet and winner.yaml into `folder` and returns the files."""
        # The report imports this file.
        store = import_module("moesim.planner.serving_store")
        written: list[Path] = store.save(self, folder)
        return written
