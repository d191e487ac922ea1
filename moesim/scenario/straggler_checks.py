"""Rules on slow GPUs: they exist, stand in one simulated group, and are told once."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.errors import Problem
from moesim.scenario.scenario import Scenario


def stragglers_exist(scenario: Scenario) -> Iterator[Problem]:
    """A straggler is a rank of the simulated group, or a GPU of the cluster."""
    limits = {"rank": (scenario.parallelism.expert, "expert parallel"), "gpu": (scenario.cluster.gpus, "cluster.gpus")}
    for index, straggler in enumerate(scenario.simulation.stragglers or ()):
        for key, (limit, name) in limits.items():
            value = getattr(straggler, key)
            if value is not None and value >= limit:
                yield Problem(f"simulation.stragglers.{index}.{key}", f"{value} is not below {name} {limit}")


def stragglers_are_told_once(scenario: Scenario) -> Iterator[Problem]:
    """Which of two slowdowns of one GPU held would be anyone's guess."""
    first: dict[tuple[int | None, int | None], int] = {}
    for index, straggler in enumerate(scenario.simulation.stragglers or ()):
        told = first.setdefault((straggler.rank, straggler.gpu), index)
        if told != index:
            name = "rank" if straggler.rank is not None else "gpu"
            number = straggler.rank if straggler.rank is not None else straggler.gpu
            yield Problem(
                f"simulation.stragglers.{index}.{name}", f"{number} is given twice: simulation.stragglers.{told} has it"
            )


def stragglers_share_a_group(scenario: Scenario) -> Iterator[Problem]:
    """One expert-parallel group is simulated through all pipeline ranks: it has to hold every slow GPU."""
    layout, gpus = scenario.parallelism, scenario.cluster.gpus
    named = [one.gpu for one in scenario.simulation.stragglers or () if one.gpu is not None and one.gpu < gpus]
    if gpus % layout.pipeline or not named:
        return
    stage, whole = gpus // layout.pipeline, layout.expert * layout.expert_tensor

    def group(gpu: int) -> tuple[int, int]:
        return gpu % stage // whole, gpu % stage % layout.expert_tensor

    others = [gpu for gpu in named if group(gpu) != group(named[0])]
    if others:
        yield Problem(
            "simulation.stragglers",
            f"GPUs {named[0]} and {others[0]} stand in different expert-parallel groups, and one is simulated; keep the"
            " slower, or name GPUs of one group (`moesim show --groups`)",
        )


CHECKS = (stragglers_exist, stragglers_are_told_once, stragglers_share_a_group)
