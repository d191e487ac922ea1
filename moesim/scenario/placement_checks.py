"""The cross-field rules about where experts are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moesim.errors import InfeasibleError, Problem, UserError
from moesim.network.topology import group
from moesim.placement import place
from moesim.placement.placed import BY_DOMAIN, target_of
from moesim.placement.strategies import most_redundant
from moesim.scenario.scenario import Scenario
from moesim.specs.model import ModelSpec
from moesim.specs.routing import CapacitySpec
from moesim.specs.workload import PlacementSpec

Check = Callable[[Scenario], Iterator[Problem]]


def placement_suits_the_model(scenario: Scenario) -> Iterator[Problem]:
    """Strategy and redundant experts suit the model, its router and its expert-parallel group."""
    layout, spec, model = scenario.parallelism, scenario.placement, scenario.model
    yield from placement_problems(spec, model, layout.expert, scenario.routing.capacity)
    if spec.strategy not in BY_DOMAIN or not model.is_moe or layout.expert == 1:
        return
    try:
        network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    except (InfeasibleError, UserError):
        return  # another rule says so
    yield from domain_problems(spec, model, layout.expert, network.ranks_per_domain)


def placement_problems(
    spec: PlacementSpec, model: ModelSpec, ranks: int, capacity: CapacitySpec | str
) -> Iterator[Problem]:
    """What is wrong with a placement on `ranks` expert-parallel ranks, wherever these stand."""
    copies, experts = spec.redundant_experts, model.n_experts
    if not model.is_moe:
        if not spec.in_order:
            key = "redundant_experts" if copies else "strategy"
            yield Problem(f"placement.{key}", f"{model.name} has no experts")
        return
    if spec.strategy == "groups" and model.router.groups == 1:
        yield Problem("placement.strategy", f"groups needs a router with groups of experts; {model.name}'s has one")
    if not copies:
        return
    where, most = "placement.redundant_experts", most_redundant(experts, ranks)
    if ranks == 1:
        yield Problem(where, f"the one expert-parallel rank holds every expert already, got {copies}; allowed: 0")
    elif copies > most:
        yield Problem(where, f"{copies} are more than a copy of each expert on every rank; allowed: at most {most}")
    elif (experts + copies) % ranks:
        yield _uneven(experts, copies, ranks)
    if spec.offload is not None:
        yield Problem(where, "experts that are fetched from the host stand nowhere; drop placement.offload, or say 0")
    if isinstance(capacity, CapacitySpec) and capacity.overflow != "drop":
        why = f"{capacity.overflow} looks for experts with room, not for slots of them"
        yield Problem("routing.capacity.overflow", f"{why}; with redundant experts allowed: drop")


def _uneven(experts: int, copies: int, ranks: int) -> Problem:
    below = (experts + copies) // ranks * ranks - experts
    near = [str(count) for count in (below, below + ranks) if count >= 0]
    return Problem(
        "placement.redundant_experts",
        f"{experts} experts and {copies} redundant ones are {experts + copies} slots, which do not divide over {ranks}"
        f" ranks; nearest: {', '.join(near)}",
    )


def domain_problems(spec: PlacementSpec, model: ModelSpec, ranks: int, ranks_per_domain: int) -> Iterator[Problem]:
    """What keeps a strategy that looks at domains from dividing experts or groups among them."""
    if (model.n_experts + spec.redundant_experts) % ranks or model.n_experts % model.router.groups:
        return  # another rule says so
    try:
        target = target_of(spec, ranks, ranks_per_domain, model.router.groups)
        if spec.strategy != "co-activation":
            place(spec.strategy, target, np.ones((1, model.n_experts)))
    except UserError as error:
        yield Problem("placement.strategy", f"{spec.strategy}: {error}; others that look at loads: greedy, global")


CHECKS: tuple[Check, ...] = (placement_suits_the_model,)
