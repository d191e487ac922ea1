"""What one engine iteration computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """What B iterations compute, [B] each (arrays broadcast), over the whole instance, all its attention replicas.

    `prefill_tokens`: new prompt tokens; `prefill_context`: token pairs of their attention, the sum over prompts of
    new x (cached + new / 2); `decode_requests`: requests that decode; `decode_context`: the sum of their context
    lengths, which is what attention reads of the KV cache. `busiest`: what the attention replica with most has of each,
    for itself; where absent all have equally much.
    """

    prefill_tokens: Floats
    prefill_context: Floats
    decode_requests: Floats
    decode_context: Floats
    busiest: Batch | None = None
