"""Attention over the KV cache: causal over new prompt tokens, and of decoding requests, which read all their context.

Layers with a sliding window see at most that much. Arrays [B], of one attention replica; seconds of all layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import attention_time, latent_heads
from moesim.iteration.formats import score_format
from moesim.scenario.serving import ServingScenario
from moesim.specs.model import ModelSpec

Floats = NDArray[np.float64]


def full_layers(model: ModelSpec) -> int:
    """Layers whose attention sees the whole context; the others see `sliding_window`."""
    return model.layers // model.full_attention_every if model.sliding_window else model.layers


def prefill_seconds(scenario: ServingScenario, tensor: int, tokens: Floats, pairs: Floats) -> Floats:
    """Seconds of `pairs` (query, key) pairs of `tokens` new prompt tokens; 0 where there are none."""
    model = scenario.model
    length = np.maximum(pairs / np.maximum(tokens, 1.0), 1.0)
    window = float(model.sliding_window or np.inf)
    # A causal triangle whose mean is `length` has sides of twice that; its first tokens fill the window.
    side = np.maximum(2.0 * length, 1.0)
    seen = np.where(side > window, window * (1.0 - window / (2.0 * side)), length) if np.isfinite(window) else length
    return _all_layers(scenario, tensor, tokens, (length, np.maximum(seen, 1.0)), None)


def decode_seconds(scenario: ServingScenario, tensor: int, requests: Floats, context: Floats, positions: int) -> Floats:
    """Seconds of `requests` that read `context` tokens together, each at so many positions; 0 where there are none."""
    length = np.maximum(context / np.maximum(requests, 1e-9), 1.0)
    seen = np.minimum(length, float(scenario.model.sliding_window or np.inf))
    return _all_layers(scenario, tensor, requests * positions, (length, seen), requests)


def _all_layers(
    scenario: ServingScenario, tensor: int, tokens: Floats, lengths: tuple[Floats, Floats], sequences: Floats | None
) -> Floats:
    """Full layers over the first of `lengths`, windowed ones over the second."""
    model, full = scenario.model, full_layers(scenario.model)
    if not tokens.any():
        return np.zeros_like(tokens)
    heads = _heads(model, tensor, absorbed=sequences is not None)
    found = np.zeros_like(tokens)
    count = np.maximum(tokens, 1.0)
    some = None if sequences is None else np.maximum(sequences, 1.0)
    for layers, length in ((full, lengths[0]), (model.layers - full, lengths[1])):
        if layers:
            one = attention_time(
                scenario.cluster.gpu, count, length, causal=False, dtype=score_format(scenario),
                measured=scenario.cluster.calibration, sequences=some, **heads,
            ).seconds  # fmt: skip
            found = found + layers * np.asarray(one)
    return np.where(tokens > 0, found, 0.0)


def _heads(model: ModelSpec, tensor: int, absorbed: bool) -> dict[str, Any]:
    """The heads of one rank as the kernel sees them."""
    heads, latent = max(1, model.n_heads // tensor), model.mla
    if latent is not None:
        seen = latent_heads(heads, latent.qk_nope, latent.qk_rope, latent.v_head, latent.kv_lora_rank, absorbed)
        return {
            "heads": seen.heads,
            "kv_heads": seen.kv_heads,
            "head_dim": seen.head_dim,
            "value_dim": seen.value_dim,
            "latent": seen.latent,
        }
    keys = max(1, model.kv_heads // tensor)
    return {"heads": heads, "kv_heads": min(keys, heads), "head_dim": model.head, "value_dim": model.head}
