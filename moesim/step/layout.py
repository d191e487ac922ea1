"""Which layers stand on which virtual stage, and which pipeline rank holds it."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.scenario.scenario import Scenario
from moesim.step.balance import cut, weights


@dataclass(frozen=True)
class Chunk:
    """A virtual stage: consecutive layers, with the embedding before and the head (and MTP layers) behind."""

    index: int
    layers: tuple[int, ...]
    embedding: bool
    head: bool
    mtp_layers: int


def chunks(scenario: Scenario) -> tuple[Chunk, ...]:
    """The virtual stages, first to last.

    A stated `stack_options.pipeline_layout` wins. Layers that divide evenly are divided evenly, as software stacks
    do; otherwise they are cut where ranks have equal work by priced seconds, the head and MTP modules included
    (`moesim.step.balance`).
    """
    count = scenario.virtual_stages
    stated = scenario.stack_options.pipeline_layout
    sizes = stated if stated is not None else _sizes(scenario)
    found, first = [], 0
    for index, size in enumerate(sizes):
        last = index == count - 1
        found.append(
            Chunk(index, tuple(range(first, first + size)), index == 0, last, scenario.model.mtp_layers if last else 0)
        )
        first += size
    return tuple(found)


def layout_note(scenario: Scenario, found: tuple[Chunk, ...]) -> str | None:
    """How many layers stand on each virtual stage where that was chosen for the scenario and is uneven; else None."""
    sizes = [len(chunk.layers) for chunk in found]
    if scenario.stack_options.pipeline_layout is not None or len(set(sizes)) == 1:
        return None
    told = ", ".join(str(size) for size in sizes)
    return f"layers by virtual stage, chosen for equal work: {told}; another cut: stack_options.pipeline_layout"


def cut_evenly(scenario: Scenario) -> bool:
    """Whether no layout is stated and the layers divide by the virtual stages, with nothing but a head behind them."""
    whole = scenario.model.layers % scenario.virtual_stages == 0 and not scenario.model.mtp_layers
    return whole and scenario.stack_options.pipeline_layout is None


def _sizes(scenario: Scenario) -> tuple[int, ...]:
    count = scenario.virtual_stages
    if count == 1 or cut_evenly(scenario):
        return (scenario.model.layers // count,) * count
    return cut(weights(scenario), scenario.parallelism.pipeline, count, mirrored(scenario))


def mirrored(scenario: Scenario) -> bool:
    """Whether a rank holds mirror images: of a rank in DualPipe, of a chunk in the V."""
    return scenario.schedule_kind in ("dualpipe", "zero-bubble-v")


def chunks_on(scenario: Scenario, device: int) -> tuple[int, ...]:
    """The chunks whose weights a pipeline rank holds."""
    stages = scenario.parallelism.pipeline
    if mirrored(scenario):
        return (device, scenario.virtual_stages - 1 - device)
    return tuple(range(device, scenario.virtual_stages, stages))
