"""What a tensor-parallel group does not divide evenly: key-value heads fewer than its ranks, which several ranks hold
alike; and, without sequence parallelism, whatever stands before the first split product, which every rank holds whole.

`keys` ranks hold the same key-value head; `inputs` ranks hold the same token outside the split products. Both are 1
where everything is divided. Source: Shoeybi et al. 2019 (arXiv:1909.08053), Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.specs import parameters
from moesim.specs.model import ModelSpec
from moesim.specs.parallelism import ParallelismSpec


def key_value_copies(model: ModelSpec, tensor: Any) -> Any:
    """Ranks [...] of a tensor-parallel group of `tensor` [...] ranks that hold the same key-value head.

    Latent attention makes keys and values of every head anew, so that its heads are divided as queries are.
    """
    one = np.ones_like(np.asarray(tensor))
    return one if model.mla is not None else np.maximum(one, np.asarray(tensor) // model.kv_heads)


def input_copies(layout: ParallelismSpec) -> int:
    """Ranks of a tensor-parallel group that hold the same token outside the split products."""
    return 1 if layout.sequence_parallel else layout.tensor


def attention_products(model: ModelSpec, keys: int, inputs: int) -> float:
    """Parameters of an attention block by which each token of a rank's share is multiplied, copies counted."""
    whole, latent = float(parameters.attention_parameters(model)), model.mla
    if latent is None:
        return whole + (keys - 1) * model.d_model * model.kv_width
    down = model.d_model * (latent.q_lora_rank + latent.kv_lora_rank + latent.qk_rope)
    return whole + (inputs - 1) * down


def attention_widths(model: ModelSpec, keys: int) -> float:
    """Width of all queries, keys and values of a token together, copies counted."""
    return float(model.qkv_width + (keys - 1) * model.kv_width)
