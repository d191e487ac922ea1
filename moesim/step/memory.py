"""Memory of the fullest GPU of a step, by part: what the schedule keeps in flight times what a token leaves behind."""

from __future__ import annotations

from moesim.costs.memory import Shards, Split, TokenLayer, coefficients, state_bytes, token_layer_bytes
from moesim.scenario.scenario import Scenario
from moesim.step.data_parallel import replicas
from moesim.step.layout import Chunk
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork
from moesim.step.schedules import most_held


def memory_parts(model: StepModel, routed: RoutedWork | None) -> dict[str, float]:
    """Bytes by part on the fullest GPU of the step."""
    devices = range(model.scenario.parallelism.pipeline)
    return max((_device(model, device, routed) for device in devices), key=lambda parts: sum(parts.values()))


def _device(model: StepModel, device: int, routed: RoutedWork | None) -> dict[str, float]:
    scenario, held, ranks = model.scenario, model.held[device], replicas(model.scenario)
    parts: dict[str, float] = {}
    for prefix, count, copies in (("", held.dense, ranks.dense), ("expert ", held.expert, ranks.expert)):
        found = state_bytes(count, _shards(scenario, copies), scenario.precision)
        if prefix and scenario.placement.offload is not None:
            found = _resident(scenario, found)
        parts.update({prefix + name: size for name, size in found.items() if size})
    kept, most = _rows_per_token(model, device, routed)
    parts["activations"] = _activations(model, device, kept)
    head = any(chunk.head for chunk in (model.chunks[index] for index in _chunks(model, device)))
    if head and scenario.model.vocab:
        logits = scenario.tokens_per_rank * scenario.model.vocab * coefficients()["logit_bytes"]
        parts["logits"] = float(logits)
    if scenario.model.is_moe and scenario.parallelism.expert > 1:
        copy = model.mover.payload
        parts["dispatch buffers"] = float(scenario.tokens_per_rank * most * (copy.dispatch + copy.combine))
    parts["libraries and fragmentation"] = float(coefficients()["fixed_bytes"])
    return parts


def _resident(scenario: Scenario, found: dict[str, float]) -> dict[str, float]:
    """What is left on the GPU of the experts' states: weights and gradients of the resident ones."""
    offload = scenario.placement.offload
    local = scenario.model.n_experts / scenario.parallelism.expert
    share = min(1.0, offload.resident / local) if offload is not None else 1.0
    return {"weights": share * found["weights"], "gradients": share * found["gradients"], "optimizer": 0.0}


def _rows_per_token(model: StepModel, device: int, routed: RoutedWork | None) -> tuple[float, float]:
    """Rows that the busiest rank computes for each of its own tokens: mean over what it keeps, and the most at once.

    Kept activations are those of many microbatches and all layers of the pipeline rank; a buffer is one layer's.
    """
    if routed is None:
        return 0.0, 0.0
    layers = {layer for index in _chunks(model, device) for layer in model.chunks[index].layers}
    places = [place for layer, place in model.moe_index.items() if layer in layers] or [0]
    rows = routed.rows[places] / model.scenario.tokens_per_rank
    return float(rows.mean(axis=(0, 1)).max()), float(rows.max())


def _chunks(model: StepModel, device: int) -> set[int]:
    return {slot.forward.chunk for slot in model.order[device] if slot.forward is not None}


def _shards(scenario: Scenario, ranks: int) -> Shards:
    kind = scenario.parallelism.data_sharding
    return Shards(
        weights=ranks if kind == "full" else 1,
        gradients=ranks if kind in ("gradients", "full") else 1,
        optimizer=1 if kind == "none" else ranks,
    )


def _activations(model: StepModel, device: int, rows: float) -> float:
    """The most that microbatches in flight keep at once, walking the rank's slots in order.

    Weight gradients that are put off hold what their products read, inputs and output gradients: nearly what the
    backward had (Qi et al. 2023, table 1: 32 of 34 bytes), recomputed and off-loaded values among it.
    """
    scenario = model.scenario
    modules = frozenset({"full"} if scenario.recompute == "full" else scenario.recomputed_modules)
    layout = scenario.parallelism
    split = Split(layout.expert_tensor, 1 if layout.sequence_parallel else layout.tensor)
    kinds = scenario.model.layer_kinds
    indices = _chunks(model, device)
    layers = sum(len(model.chunks[index].layers) for index in indices)
    stays = max(0.0, 1.0 - scenario.stack_options.offload_layers / layers) if layers else 1.0

    def chunk_bytes(chunk: Chunk, token: TokenLayer) -> float:
        moe = sum(kinds[layer] == "moe" for layer in chunk.layers) + chunk.mtp_layers * (kinds[-1] == "moe")
        count = len(chunk.layers) + chunk.mtp_layers
        per_token = count * token.attention + (count - moe) * token.dense + moe * token.experts
        return scenario.tokens_per_rank * per_token

    def sizes(recompute: frozenset[str], share: float) -> dict[int, float]:
        token = token_layer_bytes(scenario.model, scenario.precision, rows, recompute, split)
        return {index: chunk_bytes(model.chunks[index], token) * share for index in indices}

    return most_held(model.order[device], sizes(modules, stays), sizes(frozenset(), 1.0))
