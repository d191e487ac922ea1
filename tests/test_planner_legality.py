"""The planner's vectorised rules say of every candidate what the scenario's own checks say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import moesim
from moesim.planner.legality import RULES, Facts, reasons
from moesim.scenario.checks import problems
from moesim.scenario.scenario import Scenario
from moesim.screening import Candidates, Choices, scenario_of
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.routing import CapacitySpec

SCENARIOS = Path(__file__).parents[1] / "scenarios"
KINDS = ("auto", "1f1b", "interleaved-1f1b", "gpipe", "zero-bubble", "zero-bubble-v", "dualpipe")
DISPATCHERS = ("auto", "nccl-all-to-all", "deepep-normal", "hybrid-ep", "one-sided-nvl", "deepep-low-latency")
OVERLAPS = (
    OverlapSpec(),
    OverlapSpec(expert_communication=True),
    OverlapSpec(two_batch=True),
    OverlapSpec(shared_experts=True),
    OverlapSpec(weight_gradients="delayed"),
    OverlapSpec(two_batch=True, expert_communication=True),
)
COUNT = 700


def base(name: str) -> Scenario:
    """A shipped scenario without what belongs to its one layout."""
    found = moesim.load(SCENARIOS / f"{name}.yaml", ["simulation.sampled_tokens=null"])
    options = found.stack_options.model_copy(update={"pipeline_layout": None})
    return found.model_copy(update={"stack_options": options})


def drawn(scenario: Scenario) -> tuple[Choices, Candidates]:
    """Random candidates, legal and illegal."""
    chance = np.random.default_rng(7)
    choices = Choices(
        clusters=tuple(scenario.cluster.model_copy(update={"gpus": gpus}) for gpus in (8, 64, 72, 256, 1024)),
        recomputes=("none", "full"),
        schedules=tuple(ScheduleSpec(kind=kind) for kind in KINDS),
        capacities=("dropless", CapacitySpec(factor=1.25)),
        dispatchers=DISPATCHERS,
        overlaps=OVERLAPS,
    )
    values = {
        "cluster": range(5),
        "tensor": (1, 1, 1, 2, 3, 8),
        "pipeline": (1, 1, 2, 4, 8, 16),
        "virtual_pipeline": (1, 1, 1, 2, 3, 4),
        "expert": (1, 2, 4, 8, 12, 64, 128),
        "expert_tensor": (1, 1, 1, 2, 4),
        "context": (1, 1, 1, 2, 8),
        "micro_batch": (1, 1, 2, 4, 3),
        "recompute": range(2),
        "schedule": range(len(KINDS)),
        "capacity": range(2),
        "dispatcher": range(len(DISPATCHERS)),
        "overlap": range(len(OVERLAPS)),
    }
    if not scenario.model.is_moe:
        values |= {"expert": (1, 1, 1, 1, 2), "expert_tensor": (1, 1, 1, 1, 2)}
    columns = [chance.choice(np.array(values[field.name]), COUNT) for field in fields(Candidates)]
    return choices, Candidates(*columns)


@pytest.mark.parametrize(
    "name", ["qwen3-235b-256-gb200", "mixtral-8x7b-64-h100", "dense-100b-512-h100", "deepseek-v3-2048-h800"]
)
def test_both_ways_against_the_scenarios_checks(name: str) -> None:
    """Everything that the planner calls legal the checks accept, and the other way round: 2,800 candidates."""
    scenario = base(name)
    choices, candidates = drawn(scenario)
    broken = reasons(Facts(scenario, choices, candidates))
    for row in range(COUNT):
        told = problems(scenario_of(scenario, choices, candidates, row))
        code = RULES[broken[row] - 1].code if broken[row] else None
        assert (code is None) == (not told), (row, code, told)
    assert 30 < (broken == 0).sum() < COUNT / 2  # neither answer is the easy one
    assert len(set(broken.tolist())) > 5


def test_every_rule_has_its_own_code_and_words() -> None:
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert all(rule.meaning for rule in RULES)


def test_a_dispatcher_that_cannot_run_is_a_reason() -> None:
    """A one-sided kernel inside a rack does not leave the domain of 8."""
    scenario = base("mixtral-8x7b-64-h100")
    choices, _ = drawn(scenario)
    one = Candidates(*(np.ones(1, dtype=np.int64) for _ in fields(Candidates)))
    one.schedule[0] = one.recompute[0] = one.capacity[0] = one.overlap[0] = 0
    one.expert[0], one.expert_tensor[0] = 8, 2
    one.dispatcher[0] = DISPATCHERS.index("one-sided-nvl")
    assert RULES[reasons(Facts(scenario, choices, one))[0] - 1].code == "dispatcher"
    one.dispatcher[0] = 0
    assert reasons(Facts(scenario, choices, one))[0] == 0
