"""The cross-field rules about what runs beside exchanges, and what the answer says of switches that do nothing.

One rule for all switches: where there are no exchanges to hide (a dense model, or one expert-parallel rank) a switch
does nothing, and a note says so; where there are, one that contradicts schedule, model or another switch is a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moesim.errors import Problem
from moesim.scenario.scenario import Scenario

Check = Callable[[Scenario], Iterator[Problem]]


def schedule_has_pairs(scenario: Scenario) -> Iterator[Problem]:
    """Expert communication hides behind compute where a forward runs beside a backward."""
    kind, stages = scenario.schedule_kind, scenario.parallelism.pipeline
    if not (scenario.overlap.expert_communication and scenario.exchanges_tokens):
        return
    if kind == "gpipe":
        yield Problem(
            "overlap.expert_communication",
            "gpipe runs no forward beside a backward; use 1f1b or dualpipe, or overlap.two_batch, or false",
        )
    if kind == "zero-bubble-h1" and stages > 1:
        yield Problem(
            "overlap.expert_communication",
            "zero-bubble-h1 warms up too few microbatches to run a forward beside a backward: neighbouring ranks would"
            " wait for each other; use zero-bubble-v or dualpipe, or false",
        )


def overlap_is_possible(scenario: Scenario) -> Iterator[Problem]:
    """What runs beside exchanges is there, and is told once."""
    overlap, model, kind = scenario.overlap, scenario.model, scenario.schedule_kind
    if not scenario.exchanges_tokens:
        return
    tokens = scenario.tokens_per_rank
    if overlap.two_batch and overlap.expert_communication:
        yield Problem(
            "overlap.two_batch",
            "overlap.expert_communication already hides exchanges behind the other microbatch of a pair; choose one",
        )
    if overlap.two_batch and tokens % 2:
        yield Problem("overlap.two_batch", f"{tokens} tokens of a GPU's microbatch do not divide into two halves")
    if overlap.shared_experts and not (model.shared_expert_width or model.dense_beside_experts):
        yield Problem("overlap.shared_experts", "the model has no shared experts and no dense layer beside its experts")
    if overlap.weight_gradients == "delayed" and kind.startswith("zero-bubble"):
        yield Problem(
            "overlap.weight_gradients", f"{kind} puts weight gradients off by itself; use with-backward, or 1f1b"
        )


def tensor_parallel_overlap_is_told_once(scenario: Scenario) -> Iterator[Problem]:
    """The two keys that switch it on do not contradict each other."""
    stated, buffers = scenario.overlap.tensor_parallel, scenario.stack_options.user_buffers
    if stated is not None and buffers is not None and stated != buffers:
        yield Problem(
            "overlap.tensor_parallel",
            f"{stated}, but stack_options.user_buffers, which says the same, is {buffers}; state one, or both alike",
        )


def idle_switches(scenario: Scenario) -> tuple[str, ...]:
    """Notes on overlaps that are switched on and have nothing to hide."""
    overlap, notes = scenario.overlap, []
    on = [name for name in ("expert_communication", "two_batch", "shared_experts") if getattr(overlap, name)]
    on += ["weight_gradients"] * (overlap.weight_gradients == "delayed")
    if on and not scenario.exchanges_tokens:
        why = "there is one expert-parallel rank" if scenario.model.is_moe else f"{scenario.model.name} has no experts"
        switches = ", ".join(f"overlap.{name}" for name in on)
        notes.append(f"{switches}: nothing to run beside, for {why}: no effect")
    if overlap.tensor_parallel and scenario.parallelism.tensor == 1:
        notes.append("overlap.tensor_parallel: nothing to hide, for parallelism.tensor is 1: no effect")
    return tuple(notes)


CHECKS: tuple[Check, ...] = (schedule_has_pairs, overlap_is_possible, tensor_parallel_overlap_is_told_once)
