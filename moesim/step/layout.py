"""Which layers stand on which virtual stage, and which pipeline rank holds it."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.scenario.scenario import Scenario
from moesim.specs.parameters import attention_parameters, expert_parameters, shared_expert_parameters


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
    do; otherwise the remainder goes where there is least work, the head counting as the layers it costs.
    """
    count = scenario.virtual_stages
    stated = scenario.stack_options.pipeline_layout
    sizes = list(stated) if stated is not None else _sizes(scenario, count)
    found, first = [], 0
    for index, size in enumerate(sizes):
        last = index == count - 1
        found.append(
            Chunk(index, tuple(range(first, first + size)), index == 0, last, scenario.model.mtp_layers if last else 0)
        )
        first += size
    return tuple(found)


def _sizes(scenario: Scenario, count: int) -> list[int]:
    layers, mtp = scenario.model.layers, scenario.model.mtp_layers
    if layers % count == 0 and not mtp:
        return [layers // count] * count
    work = [0.0] * count
    work[-1] = mtp + (1 + mtp) * head_in_layers(scenario)
    work[0] += 0.01  # the embedding: nearly nothing, but a tie goes to another stage
    sizes = [0] * count
    for _ in range(layers):
        target = min(range(count), key=lambda index: (work[index] + 1.0, index))
        sizes[target] += 1
        work[target] += 1.0
    # Only the first and the last virtual stage may do without a layer: they hold the embedding and the head.
    for index in [index for index in range(1, count - 1) if sizes[index] == 0]:
        donor = max(range(count), key=lambda other: sizes[other])
        sizes[donor] -= 1
        sizes[index] += 1
    return sizes


def head_in_layers(scenario: Scenario) -> float:
    """Arithmetic of the output head over that of one layer of the common kind."""
    model = scenario.model
    ffn = model.dense_matrices * model.d_model * (model.d_ff_dense or 0)
    if model.is_moe:
        ffn = model.top_k * expert_parameters(model) + shared_expert_parameters(model)
    return model.d_model * model.vocab / max(1.0, attention_parameters(model) + ffn)


def chunks_on(scenario: Scenario, device: int) -> tuple[int, ...]:
    """The chunks whose weights a pipeline rank holds."""
    stages = scenario.parallelism.pipeline
    if scenario.schedule_kind in ("dualpipe", "zero-bubble-v"):
        # Mirror images: of a rank in DualPipe, of a chunk in the V.
        return (device, scenario.virtual_stages - 1 - device)
    return tuple(range(device, scenario.virtual_stages, stages))
