"""A plan's answer: the rows worth reading, the Pareto front, why everything else was rejected, and the words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.planner.candidate import scenario_at
from moesim.planner.figures import Figures
from moesim.planner.reading import Question
from moesim.planner.space import Rows as Candidates
from moesim.provenance import Quantity
from moesim.scenario.scenario import Scenario
from moesim.specs.plan import PlanSpec

RowRoad = Literal["simulate", "estimate"]


@dataclass(frozen=True)
class Row:
    """One candidate that a road answered. `over`: the limits it breaks, with the figure over what is allowed;
    `screened_step`: seconds that the screening gave it; `pareto`: whether no other row beats it in every respect."""

    scenario: Scenario
    road: RowRoad
    summary: dict[str, Quantity]
    breakdown: dict[str, float]
    memory: dict[str, float]
    notes: tuple[str, ...]
    figures: Figures
    screened_step: float
    over: dict[str, float]
    pareto: bool = False

    @cached_property
    def layout(self) -> dict[str, Any]:
        """The searched fields by their names in a scenario."""
        scenario, degrees = self.scenario, self.scenario.parallelism
        capacity = scenario.routing.capacity
        return {
            "cluster.gpu": scenario.cluster.gpu.name,
            "cluster.gpus": scenario.cluster.gpus,
            "cluster.fabric": scenario.cluster.fabric.name,
            **{f"parallelism.{name}": getattr(degrees, name) for name in DEGREE_NAMES},
            "workload.micro_batch": scenario.workload.micro_batch,
            "recompute": list(scenario.recompute) if isinstance(scenario.recompute, tuple) else scenario.recompute,
            "schedule.kind": scenario.schedule_kind,
            "routing.capacity": "dropless" if capacity == "dropless" else capacity.factor,
            "dispatcher.kind": scenario.dispatcher.kind,
            "overlap.expert_communication": scenario.overlap.expert_communication,
            "placement.redundant_experts": scenario.placement.redundant_experts,
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
            "over": self.over,
            "screened_step_seconds": self.screened_step,
            "notes": list(self.notes),
        }


DEGREE_NAMES = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")


@dataclass(frozen=True)
class Relaxation:
    """What a weaker limit would bring: the limit's key, what it allows, what it would have to allow for `row`, which
    breaks no other, and how much better than the winner the row then is (objective over the winner's; None without)."""

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
class Own:
    """The scenario's own layout among the others: its answered row, how many of the `of` candidates that keep all
    limits (itself counted) are not behind it by the objective, and whether it stands on a cluster that is searched."""

    row: Row
    rank: int
    of: int
    searched: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"rank": self.rank, "of": self.of, "searched": self.searched, "row": self.row.as_dict()}


@dataclass(frozen=True)
class ModelPlan:
    """One model's answer.

    `rows`: candidates that keep all limits, best first: the simulated ones, then those of the Pareto front that were
    estimated; empty where nothing is feasible, and then `closest` comes nearest. Without `whole_run` time and cost are
    for a billion tokens. Of `total` combinations `screened` were priced and `feasible` keep every limit; every other
    one has its one reason in `rejected` (codes; `meanings` in words). `best_by_gpu`: the best answered row of every
    GPU and fabric. `table`: columns of the screened candidates worth keeping (`moesim.planner.columns`), the best
    first; `candidate` makes a scenario of one of them. `overturned`: simulated rows that break a limit which the closed
    form found kept, the nearest first; `failed`: why others could not be simulated. `own`: the scenario's own layout,
    where it is searched anew.
    """

    question: Question
    base: Scenario
    whole_run: bool
    rows: tuple[Row, ...]
    closest: Row | None
    total: int
    screened: int
    feasible: int
    rejected: dict[str, int]
    meanings: dict[str, str]
    relaxations: tuple[Relaxation, ...]
    best_by_gpu: tuple[Row, ...]
    words: tuple[str, ...]
    notes: tuple[str, ...]
    table: dict[str, NDArray[Any]]
    places: Candidates
    overturned: tuple[Row, ...] = ()
    failed: tuple[str, ...] = ()
    own: Own | None = None

    def candidate(self, place: int) -> Scenario:
        """The whole scenario of one line of `table`."""
        return scenario_at(self.question, self.places[place])

    @property
    def model(self) -> str:
        """The model's name."""
        return self.base.model.name

    @property
    def winner(self) -> Row | None:
        """The best row, where any keeps the limits."""
        return self.rows[0] if self.rows else None

    @property
    def pareto(self) -> tuple[Row, ...]:
        """The rows that no other beats in time, cost, memory headroom and drops at once."""
        return tuple(row for row in self.rows if row.pareto)

    def chart(self) -> Any:
        """Time to train against cost of the screened candidates, with the Pareto front (altair)."""
        from moesim.planner.charts import pareto

        return pareto(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything but the large table."""
        return {
            "model": self.model,
            "total": self.total,
            "screened": self.screened,
            "feasible": self.feasible,
            "rejected": {
                code: {"candidates": count, "meaning": self.meanings[code]} for code, count in self.rejected.items()
            },
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
class Plan:
    """The answer to a plan: one `ModelPlan` a model."""

    spec: PlanSpec
    models: tuple[ModelPlan, ...]

    @property
    def feasible(self) -> bool:
        """Whether any model has a layout within the limits."""
        return any(model.rows for model in self.models)

    @property
    def winner(self) -> Row | None:
        """The best row of the first model."""
        return self.models[0].winner

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "moesim_plan": 1,
            "name": self.spec.name,
            "question": self.spec.question,
            "objective": self.spec.objective,
            "limits": self.spec.limits.model_dump(mode="json", exclude_none=True),
            "prices": self.spec.prices,
            "candidates": self.spec.candidates,
            "models": [model.as_dict() for model in self.models],
        }

    def save(self, folder: Any) -> list[Any]:
        """Writes plan.json, plan.html, candidates.parquet and winner.yaml into `folder` and returns the files."""
        from moesim.planner.store import save

        return save(self, folder)


def row_figures(row: dict[str, Quantity], gpus: int, watts: float) -> Figures:
    """The figures of one answered candidate, as arrays of one."""
    cost = row["cost"] if "cost" in row else row["gpu_hours"]
    values = (
        row["step_time"].value,
        row["training_time"].value,
        cost.value,
        row["fits_in_memory"].value,
        row["dropped_token_fraction"].value if "dropped_token_fraction" in row else 0.0,
        float(gpus),
        watts,
    )
    return Figures(*(np.array([value]) for value in values))
