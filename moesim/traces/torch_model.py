"""A small decoder with experts, as functions of its parameters: what `moesim trace train` trains.

RMS norms, rotary positions, causal attention, gated experts (SwiGLU), tied embeddings. B sequences of N tokens,
T = B N, d width, f hidden width, V vocabulary, L layers with experts, E experts, K choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesim.routing.assignment import NO_EXPERT
from moesim.routing.capacity import CapacityRule
from moesim.specs.routing import CapacitySpec
from moesim.traces.torch_door import Tensor, functional, torch
from moesim.traces.torch_experts import Experts, gated
from moesim.traces.torch_routers import Choice, choose, keep
from moesim.traces.training import TrainingConfig

Parameters = dict[str, Tensor]
SPREAD = 0.02
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Routed:
    """What the router of one layer did: its logits [T, E] and its choice, before any capacity."""

    logits: Tensor
    choice: Choice


@dataclass(frozen=True)
class Context:
    """What a pass needs besides parameters and tokens: `bias` [L, E] of the choice, the experts' engine, and a
    generator for rules that draw (None: they draw nothing)."""

    bias: Tensor | None
    experts: Experts
    generator: torch.Generator | None = None


def initial(config: TrainingConfig, device: torch.device) -> Parameters:
    """Fresh parameters, the same on every device: drawn on the processor from the seed."""
    generator = torch.Generator().manual_seed(config.seed % 2**63)
    width, layers = config.width, config.layers

    def drawn(*shape: int, depth: int = 1) -> Tensor:
        # Residual branches are scaled down by their number (GPT-2 report, section 2.3).
        return torch.randn(shape, generator=generator) * (SPREAD / math.sqrt(depth))

    found = {"embedding": drawn(config.vocabulary, width), "norm": torch.ones(width)}
    for layer in range(layers):
        at = f"layer{layer}."
        found |= {
            at + "attention_norm": torch.ones(width),
            at + "qkv": drawn(width, 3 * width),
            at + "attention_out": drawn(width, width, depth=2 * layers),
            at + "norm": torch.ones(width),
        }
        if layer in config.model_layers:
            found[at + "router"] = drawn(width, config.experts)
            found[at + "experts_in"] = drawn(config.experts, width, 2 * config.expert_width)
            found[at + "experts_out"] = drawn(config.experts, config.expert_width, width, depth=2 * layers)
        hidden = config.shared_experts * config.expert_width if layer in config.model_layers else config.dense_width
        if hidden:
            found[at + "dense_in"] = drawn(width, 2 * hidden)
            found[at + "dense_out"] = drawn(hidden, width, depth=2 * layers)
    return {name: tensor.to(device).requires_grad_() for name, tensor in found.items()}


def forward(
    config: TrainingConfig, parameters: Parameters, tokens: Tensor, context: Context
) -> tuple[Tensor, list[Routed]]:
    """Logits [B, N, V] of the next token (float32), and what each layer's router did."""
    layers: list[Routed] = []
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        # Tied embeddings are small, as the logits need them; scaled up, tokens stay apart from the first step on
        # (Vaswani et al. 2017, section 3.4).
        x = parameters["embedding"][tokens] * math.sqrt(config.width)
        turns = _turns(tokens.shape[1], config.width // config.heads, tokens.device)
        for layer in range(config.layers):
            at = f"layer{layer}."
            x = x + _attention(config, parameters, at, _norm(x, parameters[at + "attention_norm"]), turns)
            normed = _norm(x, parameters[at + "norm"])
            if at + "dense_in" in parameters:
                x = x + gated(normed @ parameters[at + "dense_in"]) @ parameters[at + "dense_out"]
            if layer in config.model_layers:
                mixed, routed = mixture(config, parameters, at, normed, (context, len(layers)))
                x = x + mixed
                layers.append(routed)
        logits = _norm(x, parameters["norm"]) @ parameters["embedding"].T
    return logits.float(), layers


def mixture(
    config: TrainingConfig, parameters: Parameters, at: str, normed: Tensor, place: tuple[Context, int]
) -> tuple[Tensor, Routed]:
    """The experts' weighted outputs [B, N, d] for inputs [B, N, d]."""
    (context, index), x = place, normed.flatten(0, 1)
    with torch.autocast(x.device.type, enabled=False):
        inputs = x.float()
        if context.generator is not None and config.router.jitter:
            factor = torch.rand(inputs.shape, generator=context.generator, device=x.device)
            inputs = inputs * (1 + config.router.jitter * (2 * factor - 1))
        logits = inputs @ parameters[at + "router"]
        bias = None if context.bias is None else context.bias[index]
        choice = choose(config.router, logits, config.top_k, bias, context.generator, len(normed))
    kept = choice.experts != NO_EXPERT
    if isinstance(config.capacity, CapacitySpec):
        rows = CapacityRule.of(config.capacity).capacity(len(x), config.experts, config.top_k)
        kept = kept & keep(config.capacity, choice, rows, context.generator)
    outputs = context.experts(x, choice.experts, kept, (parameters[at + "experts_in"], parameters[at + "experts_out"]))
    mixed = (outputs * choice.weights.unsqueeze(-1)).sum(1)
    return mixed.to(x.dtype).reshape(normed.shape), Routed(logits, choice)


def _attention(config: TrainingConfig, parameters: Parameters, at: str, x: Tensor, turns: Tensor) -> Tensor:
    B, N, width = x.shape
    heads = (x @ parameters[at + "qkv"]).reshape(B, N, 3, config.heads, -1).permute(2, 0, 3, 1, 4)
    query, key = _rotate(heads[0], turns), _rotate(heads[1], turns)
    mixed = functional.scaled_dot_product_attention(query, key, heads[2], is_causal=True)
    return mixed.transpose(1, 2).reshape(B, N, width) @ parameters[at + "attention_out"]


def _turns(length: int, head: int, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary angles [2, N, head / 2]."""
    rates = ROTARY_BASE ** (-torch.arange(0, head, 2, device=device) / head)
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    cosine, sine = turns.to(x.dtype)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1)


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return functional.rms_norm(x, gain.shape, gain.to(x.dtype), eps=1e-6)
