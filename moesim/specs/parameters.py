"""Counts a model's parameters and the FLOPs of one token: matrices of the products, embedding, head and router.

Norms, biases, position tables and the gate of a shared expert are left out (below 0.1 % of any model here). In an
encoder-decoder a token stands for one position of each: it passes all layers, and each decoder layer attends twice.
Multi-token-prediction (MTP) modules are counted apart: a published total leaves them out, a training step does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.specs.model import ModelSpec

FORWARD_AND_BACKWARD = 3
"""A training step works through each product once forward and twice backward (towards inputs and towards weights)."""


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, in all and by part; `active` are those that one token uses, embedding included."""

    total: int
    active: int
    embedding: int
    head: int
    attention_per_layer: int
    dense_ffn_per_layer: int
    router_per_layer: int
    expert: int
    shared_experts_per_layer: int
    mtp: int


def count(model: ModelSpec) -> ParameterCount:
    """The parameters of `model`; a tied head is counted once, as embedding."""
    embedding = model.vocab * model.d_model
    head = 0 if model.tied_embeddings else embedding
    return ParameterCount(
        total=body_parameters(model, model.n_experts) + embedding + head,
        active=body_parameters(model, model.top_k) + embedding + head,
        embedding=embedding,
        head=head,
        attention_per_layer=attention_parameters(model),
        dense_ffn_per_layer=dense_ffn_parameters(model),
        router_per_layer=router_parameters(model),
        expert=expert_parameters(model),
        shared_experts_per_layer=shared_expert_parameters(model),
        mtp=mtp_parameters(model, model.n_experts),
    )


def attention_parameters(model: ModelSpec) -> int:
    """Projections of one attention block: multi-head, grouped-query, or latent (DeepSeek-V2 report, section 2.1)."""
    width, heads, latent = model.d_model, model.n_heads, model.mla
    if latent is None:
        return 2 * width * model.head * (heads + model.kv_heads)
    queries = heads * (latent.qk_nope + latent.qk_rope)
    rank = latent.q_lora_rank
    query = width * rank + rank * queries if rank else width * queries
    key_value = width * (latent.kv_lora_rank + latent.qk_rope)
    expansion = latent.kv_lora_rank * heads * (latent.qk_nope + latent.v_head)
    return query + key_value + expansion + heads * latent.v_head * width


def dense_ffn_parameters(model: ModelSpec) -> int:
    """One dense feed-forward network; 0 where the model has none."""
    return model.dense_matrices * model.d_model * (model.d_ff_dense or 0)


def expert_parameters(model: ModelSpec) -> int:
    """One routed expert."""
    return model.expert_matrices * model.d_model * (model.d_ff_expert or 0)


def shared_expert_parameters(model: ModelSpec) -> int:
    """All shared experts of one layer together."""
    return model.expert_matrices * model.d_model * model.shared_expert_width


def router_parameters(model: ModelSpec) -> int:
    """The router of one layer."""
    return model.d_model * model.n_experts


def moe_ffn_parameters(model: ModelSpec, experts: int) -> int:
    """The feed-forward part of a MoE layer with `experts` routed experts: `n_experts` held, `top_k` used by a token."""
    beside = dense_ffn_parameters(model) if model.dense_beside_experts else 0
    routed = experts * expert_parameters(model)
    return router_parameters(model) + routed + shared_expert_parameters(model) + beside


def mtp_parameters(model: ModelSpec, experts: int) -> int:
    """The MTP modules: each one more layer of the model's last kind and the projection of two hidden states to one.

    Embedding and head are the main model's own (DeepSeek-V3 report, section 2.2).
    """
    ffn = moe_ffn_parameters(model, experts) if model.is_moe else dense_ffn_parameters(model)
    projection = 2 * model.d_model * model.d_model
    return model.mtp_layers * (attention_parameters(model) + ffn + projection)


def body_parameters(model: ModelSpec, experts: int) -> int:
    """All layers, without embedding, head and MTP, with `experts` routed experts a MoE layer."""
    cross_attention = (model.dec_layers or 0) if model.arch == "encoder-decoder" else 0
    sparse = model.moe_layers * moe_ffn_parameters(model, experts) if model.is_moe else 0
    dense = (model.layers - model.moe_layers) * dense_ffn_parameters(model)
    return (model.layers + cross_attention) * attention_parameters(model) + dense + sparse


def score_flops_per_token(model: ModelSpec, sequence_length: int) -> float:
    """Forward FLOPs of attention scores and values in one layer, for one token: the mean over the layers.

    Causal attention sees half the sequence, an encoder (and cross-attention) all of it. Where `sliding_window` is set,
    the last of each `full_attention_every` layers sees the whole sequence, the others the window.
    """
    whole, causal = float(sequence_length), sequence_length / 2
    if model.arch == "vision-encoder":
        return whole * _score_flops_per_key(model)
    if model.arch == "encoder-decoder":
        decoder = (model.dec_layers or 0) / model.layers
        keys = whole * (1 - decoder) + (causal + whole) * decoder
        return keys * _score_flops_per_key(model)
    full = (model.layers // model.full_attention_every) / model.layers if model.sliding_window else 1.0
    window = min(model.sliding_window or sequence_length, sequence_length)
    # The first tokens of a sequence have less than a window behind them.
    windowed = window * (1 - window / (2 * sequence_length))
    return (full * causal + (1 - full) * windowed) * _score_flops_per_key(model)


def _score_flops_per_key(model: ModelSpec) -> int:
    """A multiply and an add for each element of the key and of the value, in each head."""
    latent = model.mla
    widths = 2 * model.head if latent is None else latent.qk_nope + latent.qk_rope + latent.v_head
    return 2 * model.n_heads * widths


def flops_per_token(model: ModelSpec, sequence_length: int) -> float:
    """FLOPs of one token in a training step: forward and backward, MTP modules included, nothing recomputed.

    This is the convention of published model-FLOPs figures: matrix products, causal scores, one head a prediction.
    """
    matrices = body_parameters(model, model.top_k) + mtp_parameters(model, model.top_k)
    scores = (model.layers + model.mtp_layers) * score_flops_per_token(model, sequence_length)
    heads = (1 + model.mtp_layers) * model.d_model * model.vocab
    return FORWARD_AND_BACKWARD * (2 * matrices + scores + 2 * heads)
