"""How often a race's first K hold an expert, from the experts' rates, and the way back.

E experts, K choices. The K-th arrival comes at about the same time for every token, so that expert e is among the
first K with p_e = 1 - exp(-tau w_e), tau from sum_e p_e = K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 40


def threshold(weights: Floats, many: Floats | float, share: Floats | None = None) -> Floats:
    """tau [...] with sum over the last axis of 1 - exp(-tau weights [..., E]) equal to `many` [...], by Newton's method
    from below, where it never overshoots; `many` of E or more gives a tau that makes every chance all but 1. `share`
    [..., E]: how much each term counts (1)."""
    each = np.ones(weights.shape[-1]) if share is None else share
    most = each.sum(axis=-1)
    wanted = np.minimum(np.broadcast_to(np.asarray(many, float), weights.shape[:-1]), most * (1.0 - 1e-6))
    tau = wanted / (each * weights).sum(axis=-1)
    for _ in range(STEPS):
        left = each * np.exp(-tau[..., None] * weights)
        short = wanted - (most - left.sum(axis=-1))
        step = short / np.maximum((weights * left).sum(axis=-1), 1e-300)
        tau = tau + np.maximum(step, 0.0)
        if (short <= 1e-9 * np.maximum(wanted, 1e-9)).all():
            break
    return np.asarray(tau)


def inclusion(weights: Floats, many: Floats | float) -> Floats:
    """Chance [..., E] to be among the first `many` of a race with rates `weights` [..., E]."""
    return np.asarray(-np.expm1(-threshold(weights, many)[..., None] * weights))


def rates(chance: Floats) -> Floats:
    """Rates [..., E], up to a factor, of a race whose first hold each expert with `chance` [..., E]."""
    return np.asarray(-np.log1p(-np.clip(chance, 0.0, 1.0 - 1e-6)))
