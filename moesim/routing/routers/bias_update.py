"""Balance without a loss: a bias on every expert's score, moved after each step against its excess.

DeepSeek-V3 report, section 2.1.2 (gamma 0.001); Megatron-LM, moe_utils.get_updated_expert_bias. E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def update_bias(bias: Floats, counts: NDArray[np.generic], rate: float) -> Floats:
    """The bias [..., E] after a step that gave the experts `counts` [..., E] of copies: up by `rate` where an expert
    had less than the mean, down where it had more, unchanged at the mean."""
    load = np.asarray(counts, dtype=np.float64)
    return np.asarray(bias + rate * np.sign(load.mean(axis=-1, keepdims=True) - load))
