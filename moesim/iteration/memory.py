"""What a GPU of an instance holds: weights by part, the KV cache of a token, and buffers."""

from __future__ import annotations

from moesim import catalog
from moesim.costs.tensor_split import key_value_copies
from moesim.iteration.formats import expert_format, kv_bytes, weight_bytes
from moesim.iteration.offload import IN_TRANSIT, expert_bytes, resident_experts
from moesim.iteration.scores import full_layers
from moesim.scenario.serving import ServingScenario
from moesim.specs import parameters
from moesim.specs.serving import InstanceSpec


def weights(scenario: ServingScenario, instance: InstanceSpec) -> dict[str, float]:
    """Bytes of weights on the fullest GPU, by part: attention and norms, experts, redundant experts, the rest."""
    model, split = scenario.model, instance.tensor
    dense = weight_bytes(scenario.precision.compute)
    layers = -(-model.layers // instance.pipeline)
    share = layers / model.layers
    moe = model.moe_layers * share if model.is_moe else 0.0
    copies = int(key_value_copies(model, split))
    attention = parameters.attention_parameters(model) + (copies - 1) * model.d_model * model.kv_width
    found = {"weights_attention": layers * attention * dense / split}
    if model.is_moe:
        slots = (model.n_experts + scenario.placement.redundant_experts) / instance.expert
        own = model.n_experts / instance.expert
        one = moe * parameters.expert_parameters(model) * weight_bytes(expert_format(scenario.precision))
        kept = resident_experts(scenario, instance)
        found["weights_experts"] = one * (own if kept is None else kept) / instance.expert_split
        if kept is not None:
            found["experts_in_transit"] = IN_TRANSIT * expert_bytes(scenario, instance)
        if slots > own:
            found["weights_redundant_experts"] = one * (slots - own) / instance.expert_split
    ffn = layers - moe + (moe if model.dense_beside_experts else 0.0)
    beside = moe * parameters.shared_expert_parameters(model) * dense / split
    routers = moe * parameters.router_parameters(model) * 2.0 if model.is_moe else 0.0
    tables = 2.0 * model.vocab * model.d_model * (1 if model.tied_embeddings else 2) / split
    # The first and the last stage hold a table each.
    tables = tables if instance.pipeline == 1 else tables / (1 if model.tied_embeddings else 2)
    found["weights_other"] = ffn * parameters.dense_ffn_parameters(model) * dense / split + beside + routers + tables
    if model.mtp_layers and scenario.engine.drafted:
        found["weights_draft"] = parameters.mtp_parameters(model, model.n_experts) * dense / instance.stage_gpus
    return found


def kv_bytes_per_token(scenario: ServingScenario, instance: InstanceSpec, context: float) -> float:
    """Bytes that a token of a request of `context` tokens keeps in the KV cache, on all GPUs of its replica together.

    Latent attention keeps one latent vector on every tensor-parallel rank; grouped keys are kept once a rank that
    needs them; layers with a window keep at most that many tokens.
    """
    model, latent = scenario.model, scenario.model.mla
    if latent is not None:
        width = float((latent.kv_lora_rank + latent.qk_rope) * instance.tensor)
    else:
        width = float(model.kv_width * int(key_value_copies(model, instance.tensor)))
    full = full_layers(model)
    held = min(1.0, (model.sliding_window or context) / max(context, 1.0))
    return kv_bytes(scenario) * width * (full + (model.layers - full) * held)


def distinct_kv_bytes(scenario: ServingScenario, instance: InstanceSpec, context: float) -> float:
    """The same, each value counted once: what has to move to another instance."""
    model = scenario.model
    copies = instance.tensor if model.mla is not None else int(key_value_copies(model, instance.tensor))
    return kv_bytes_per_token(scenario, instance, context) / copies


def buffers(scenario: ServingScenario, instance: InstanceSpec) -> dict[str, float]:
    """Bytes of a GPU beside weights and KV cache: the context, graphs, and the activations of the fullest iteration."""
    engine, model, kept = scenario.engine, scenario.model, catalog.calibration("serving")["reserved"]
    tokens = float(engine.token_budget)
    width = 4.0 * model.d_model + model.qkv_width / instance.tensor
    inner = 2.0 * (model.d_ff_dense or 0) / instance.tensor
    if model.is_moe:
        rows = model.top_k * instance.replicas / instance.expert if instance.replicas > 1 else model.top_k
        inner = max(inner, rows * (2.0 * model.d_model + 3.0 * (model.d_ff_expert or 0) / instance.expert_split))
    logits = 4.0 * min(tokens, engine.max_requests * (1 + engine.drafted)) * model.vocab / instance.tensor
    return {
        "context": float(kept["context"]),
        "graphs": float(kept["graphs"]) if engine.cuda_graphs else 0.0,
        "activations": 2.0 * tokens * (width + inner) + logits,
    }
