"""One candidate of a question as the whole scenario that `estimate`, `simulate` and What if take.

F columns (`COLUMNS`, those of `Candidates`).
"""

from __future__ import annotations

from moesim.files import plain_name
from moesim.planner.reading import Question
from moesim.planner.space import COLUMNS, Rows, candidates
from moesim.scenario.scenario import Scenario
from moesim.screening import scenario_of


def scenario_at(question: Question, row: Rows) -> Scenario:
    """The scenario of a row [F], with its cluster's price and a name."""
    found = scenario_of(question.base, question.choices, candidates(row[None, :]), 0)
    price = question.gpu_hour[int(row[COLUMNS.index("cluster")])]
    prices = found.prices.model_copy(update={"gpu_hour": price})
    return found.model_copy(update={"prices": prices, "name": name_of(found)})


def name_of(scenario: Scenario) -> str:
    """A name that tells the layout, fit for a file: "qwen3-30b-a3b-16-h100-sxm-tp1-pp2x4-ep16-mb1"."""
    layout, cluster = scenario.parallelism, scenario.cluster
    parts = [f"{scenario.model.name}-{cluster.gpus}-{cluster.gpu.name}-tp{layout.tensor}"]
    chunks = f"x{scenario.chunks_per_rank}" if scenario.chunks_per_rank > 1 else ""
    parts.append(f"pp{layout.pipeline}{chunks}")
    for label, degree in (("ep", layout.expert), ("etp", layout.expert_tensor), ("cp", layout.context)):
        parts += [f"{label}{degree}"] if degree > 1 else []
    return plain_name("-".join([*parts, f"mb{scenario.workload.micro_batch}"]))
