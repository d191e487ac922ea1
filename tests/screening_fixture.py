"""Random legal candidates for the screening: what its tests and its benchmark share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

import moesim
from moesim.errors import MoesimError
from moesim.scenario.checks import problems
from moesim.scenario.scenario import Scenario
from moesim.screening import Candidates, Choices, scenario_of
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.routing import CapacitySpec

OVERLAPS = (
    OverlapSpec(),
    OverlapSpec(expert_communication=True),
    OverlapSpec(expert_communication=True, interference="beside"),
    OverlapSpec(two_batch=True, pipeline=False),
    OverlapSpec(shared_experts=True, tensor_parallel=False),
    OverlapSpec(expert_communication=True, weight_gradients="delayed", data_parallel=False, interference="none"),
)
KINDS = ("gpipe", "1f1b", "interleaved-1f1b", "zero-bubble-h1", "zero-bubble-v", "dualpipe", "auto")
RECOMPUTES: Any = (
    "none",
    "selective",
    "full",
    ("layernorm", "moe_act"),
    ("moe", "mla_up_proj"),
    ("mlp", "shared_experts"),
)
CAPACITIES: Any = (
    "dropless",
    CapacitySpec(factor=1.0),
    CapacitySpec(factor=1.25, pad=True),
    CapacitySpec(factor=1.5, dialect="megablocks"),
)
DISPATCHERS = (
    "auto",
    "nccl-all-to-all",
    "deepep-normal",
    "hybrid-ep",
    "hierarchical",
    "all-gather-reduce-scatter",
    "one-sided-nvl",
)


@dataclass(frozen=True)
class Case:
    """One scenario whose layouts are drawn."""

    model: str
    gpu: str
    gpus: int
    load: Any
    sharding: str = "optimizer"
    compute: str = "bf16"
    fabric: str = "rail-optimized-400g"

    def scenario(self) -> Scenario:
        """The scenario, on the larger of its two clusters."""
        return moesim.load(
            {
                "model": self.model,
                "cluster": {"gpu": self.gpu, "gpus": self.gpus, "fabric": self.fabric},
                "workload": {"global_batch": self.gpus * 16, "sequence_length": 4096},
                "routing": {"load": self.load},
                "parallelism": {"data_sharding": self.sharding},
                "precision": {"compute": self.compute},
            }
        )


def choices_of(base: Scenario) -> Choices:
    """Every schedule, recompute, capacity, dispatcher and overlap of the tests, on the cluster and half of it."""
    sizes = (base.cluster.gpus, base.cluster.gpus // 2)
    clusters = tuple(base.cluster.model_copy(update={"gpus": gpus}) for gpus in sizes)
    schedules = tuple(ScheduleSpec(kind=kind) for kind in KINDS)
    return Choices(clusters, RECOMPUTES, schedules, CAPACITIES, DISPATCHERS, OVERLAPS)


def drawn(case: Case, count: int, seed: int) -> tuple[Scenario, Choices, Candidates]:
    """So many legal candidates of a case."""
    base = case.scenario()
    choices, generator = choices_of(base), np.random.default_rng(seed)
    names = [field.name for field in fields(Candidates)]
    rows: list[dict[str, int]] = []
    while len(rows) < count:
        row = _row(base, choices, generator)
        if _is_legal(base, choices, columns([row], names)):
            rows.append(row)
    return base, choices, columns(rows, names)


def columns(rows: list[dict[str, int]], names: list[str]) -> Candidates:
    """Rows as columns."""
    return Candidates(*(np.array([row[name] for row in rows], dtype=np.int64) for name in names))


def _row(base: Scenario, choices: Choices, generator: np.random.Generator) -> dict[str, int]:
    model, moe = base.model, base.model.is_moe
    experts = [d for d in range(1, 257) if model.n_experts % d == 0] if moe else [1]
    schedule = int(generator.integers(len(KINDS)))
    several = KINDS[schedule] in ("interleaved-1f1b", "auto")
    drawn_from: dict[str, Any] = {
        "cluster": range(len(choices.clusters)),
        "tensor": (1, 2, 4, 8),
        "pipeline": (1, 2, 4, 8, 16),
        "virtual_pipeline": (1, 2, 3, 4) if several else (1,),
        "expert": experts,
        "expert_tensor": (1, 1, 2) if moe else (1,),
        "context": (1, 1, 2),
        "micro_batch": (1, 2, 4),
        "recompute": range(len(RECOMPUTES)),
        "capacity": range(len(CAPACITIES)) if moe else (0,),
        "dispatcher": range(len(DISPATCHERS)),
        "overlap": range(len(OVERLAPS)),
    }
    row = {name: int(generator.choice(list(values))) for name, values in drawn_from.items()}
    return {**row, "schedule": schedule}


def _is_legal(base: Scenario, choices: Choices, one: Candidates) -> bool:
    try:
        return not problems(scenario_of(base, choices, one, 0))
    except (MoesimError, ZeroDivisionError):
        return False
