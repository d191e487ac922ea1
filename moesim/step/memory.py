"""Memory of the fullest GPU of a step, by part: what the schedule keeps in flight times what a token leaves behind."""

from __future__ import annotations

from moesim.costs.memory import Shards, coefficients, state_bytes, token_layer_bytes
from moesim.scenario.scenario import Scenario
from moesim.step.layout import Chunk
from moesim.step.model import StepModel
from moesim.step.schedules import Slot


def memory_parts(model: StepModel, rank_load: float) -> dict[str, float]:
    """Bytes by part on the fullest GPU; `rank_load` is the busiest rank's rows over the mean."""
    devices = range(model.scenario.parallelism.pipeline)
    return max((_device(model, device, rank_load) for device in devices), key=lambda parts: sum(parts.values()))


def _device(model: StepModel, device: int, rank_load: float) -> dict[str, float]:
    scenario, held = model.scenario, model.held[device]
    parts: dict[str, float] = {}
    states = (
        ("", held.dense, scenario.data_parallel * scenario.parallelism.context),
        ("expert ", held.expert, scenario.expert_data_parallel),
    )
    for prefix, count, ranks in states:
        found = state_bytes(count, _shards(scenario, ranks), scenario.precision)
        parts.update({prefix + name: size for name, size in found.items() if size})
    parts["activations"] = _activations(model, device, rank_load)
    head = any(chunk.head for chunk in (model.chunks[index] for index in _chunks(model, device)))
    if head and scenario.model.vocab:
        logits = scenario.tokens_per_rank * scenario.model.vocab * coefficients()["logit_bytes"]
        parts["logits"] = float(logits)
    if scenario.model.is_moe and scenario.parallelism.expert > 1:
        parts["dispatch buffers"] = _buffers(model, rank_load)
    parts["libraries and fragmentation"] = float(coefficients()["fixed_bytes"])
    return parts


def _chunks(model: StepModel, device: int) -> set[int]:
    return {slot.forward.chunk for slot in model.order[device] if slot.forward is not None}


def _shards(scenario: Scenario, ranks: int) -> Shards:
    kind = scenario.parallelism.data_sharding
    return Shards(
        weights=ranks if kind == "full" else 1,
        gradients=ranks if kind in ("gradients", "full") else 1,
        optimizer=1 if kind == "none" else ranks,
    )


def _activations(model: StepModel, device: int, rank_load: float) -> float:
    """The most that microbatches in flight keep at once, walking the rank's slots in order."""
    scenario = model.scenario
    chosen = scenario.recompute
    modules = frozenset(chosen) if isinstance(chosen, tuple) else frozenset({chosen})
    rows = scenario.model.top_k * rank_load
    token = token_layer_bytes(scenario.model, scenario.precision, rows, modules)
    kinds = scenario.model.layer_kinds
    layers = sum(len(model.chunks[index].layers) for index in _chunks(model, device))
    kept = max(0.0, 1.0 - scenario.stack_options.offload_layers / layers) if layers else 1.0

    def chunk_bytes(chunk: Chunk) -> float:
        moe = sum(kinds[layer] == "moe" for layer in chunk.layers) + chunk.mtp_layers * (kinds[-1] == "moe")
        count = len(chunk.layers) + chunk.mtp_layers
        per_token = count * token.attention + (count - moe) * token.dense + moe * token.experts
        return scenario.tokens_per_rank * per_token * kept

    size = {index: chunk_bytes(model.chunks[index]) for index in _chunks(model, device)}
    return _peak(model.order[device], size)


def _peak(slots: tuple[Slot, ...], size: dict[int, float]) -> float:
    held = most = 0.0
    for slot in slots:
        if slot.forward is not None:
            held += size[slot.forward.chunk]
        most = max(most, held)
        if slot.backward is not None:
            held -= size[slot.backward.chunk]
    return most


def _buffers(model: StepModel, rank_load: float) -> float:
    """Receive buffer of a dispatch and send buffer of a combine, sized for the busiest rank."""
    scenario = model.scenario
    rows = scenario.tokens_per_rank * scenario.model.top_k * rank_load
    return float(rows * (model.mover.payload.dispatch + model.mover.payload.combine))
