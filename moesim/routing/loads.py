"""How uneven the router's choices are: the popularity of each of E experts in each of L layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.specs.routing import LoadProfile

Floats = NDArray[np.float64]


def layer_weights(profile: LoadProfile, experts: int, layers: int, streams: Streams) -> Floats:
    """Popularity of each expert in each layer [L, E]: positive, mean 1 in a layer; all ones for a uniform profile.

    Zipf gives the expert of rank r the weight r^-exponent, ranks shuffled by layer; log-normal exp(sigma * N(0, 1)). A
    (low, high) pair is spread evenly over the layers, first to last; one layer gets its middle.
    """
    weights = np.ones((layers, experts))
    spread = _over_layers(profile.zipf if profile.zipf is not None else profile.log_normal, layers)
    for layer, slope in enumerate(spread):
        generator = streams.generator(f"routing/popularity/layer{layer}")
        if profile.zipf is not None:
            logs = -slope * np.log(generator.permutation(experts) + 1.0)
        else:
            logs = slope * generator.standard_normal(experts)
        weights[layer] = normalized(logs)
    return weights


def normalized(log_weights: Floats) -> Floats:
    """Weights of mean 1 along the last axis, from their logarithms; none is zero, however small."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    weights = np.maximum(weights, np.finfo(np.float64).tiny)
    return np.asarray(weights / weights.mean(axis=-1, keepdims=True))


def _over_layers(value: float | tuple[float, float] | None, layers: int) -> Floats:
    if value is None:
        return np.zeros(0)
    low, high = value if isinstance(value, tuple) else (value, value)
    return np.linspace(low, high, layers) if layers > 1 else np.full(layers, (low + high) / 2)
