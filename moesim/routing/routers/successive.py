"""How often an expert is among a token's K choices where these are drawn by weight, one after the other.

E experts, K choices. The law is that of the K highest of log(weight) plus Gumbel noise (Plackett-Luce): exact for one
and two choices; above, by the race that is cut at a fixed time (`moesim.routing.inclusion`).
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from moesim.routing.inclusion import inclusion, rates
from moesim.routing.routers.base import Floats

_TINY = np.finfo(np.float64).tiny
_PARTS = 64
_NORMAL = np.array([NormalDist().inv_cdf((part + 0.5) / _PARTS) for part in range(_PARTS)])


def among_first(weights: Floats, top_k: int) -> Floats:
    """Probability [..., E] to be among the K drawn in proportion to positive `weights` [..., E]."""
    if top_k >= weights.shape[-1]:
        return np.ones_like(weights)
    if top_k > 2:
        return inclusion(weights, top_k)
    first: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return first + second(weights) if top_k == 2 else first


def second(weights: Floats, kept: Floats | float = 1.0) -> Floats:
    """Probability [..., E] to be drawn second, and then kept with probability `kept` [..., E], the first's own."""
    first = weights / weights.sum(axis=-1, keepdims=True)
    found: Floats = weights * others(first * kept / np.maximum(others(weights), _TINY))
    return found


def others(values: Floats) -> Floats:
    """Sum [..., E] over all other experts of non-negative `values` [..., E], added up without cancellation."""
    before, after = np.zeros_like(values), np.zeros_like(values)
    before[..., 1:] = np.cumsum(values[..., :-1], axis=-1)
    after[..., :-1] = np.cumsum(values[..., :0:-1], axis=-1)[..., ::-1]
    return before + after


def tempered(weights: Floats, noise: float, top_k: int) -> Floats:
    """Weights [..., E] of the race that comes nearest to one whose logits have normal noise of that deviation added.

    Noise makes a rate random: chances are averaged over 64 equal parts of the normal law, and put back into rates.
    """
    if not noise or top_k >= weights.shape[-1]:
        return weights
    share = weights / weights.mean(axis=-1, keepdims=True)
    parts = (share[..., None] * np.exp(noise * _NORMAL)).reshape(*weights.shape[:-1], -1)
    chances = inclusion(parts, top_k * _PARTS).reshape(*weights.shape, _PARTS).mean(axis=-1)
    return rates(chances)
