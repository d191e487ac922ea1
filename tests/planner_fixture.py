"""A small question for the planner's tests: OLMoE on one or two nodes, a space that can be looked through by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.planner.reading import Question, questions
from moesim.planner.run import read_spec
from moesim.specs.plan import PlanSpec

SCENARIO: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "workload": {"sequence_length": 4096, "global_batch": 256, "total_tokens": "100B"},
    "routing": {"load": "aux-loss-balanced"},
    "simulation": {"microbatch_samples": 2},
}
SMALL: dict[str, Any] = {
    "parallelism.tensor": [1, 2],
    "parallelism.pipeline": [1, 2, 3],
    "parallelism.virtual_pipeline": [1, 2],
    "parallelism.expert": [1, 4, 8],
    "parallelism.expert_tensor": 1,
    "workload.micro_batch": [1, 2],
    "recompute": ["none", "full"],
    "schedule.kind": ["auto", "1f1b"],
    "overlap.expert_communication": False,
}


def spec(**said: Any) -> PlanSpec:
    """A plan's specification over the small space."""
    return read_spec({"scenario": SCENARIO, "search": SMALL, **said}, "small")


def question(**said: Any) -> Question:
    """The one question of such a plan."""
    return questions(spec(**said), Path())[0]
