"""How uneven the router's choices are by a simple law: the popularity of each of E experts in each of L layers.

S sequences, N tenants.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.routing.balancing import balance
from moesim.specs.routing import LoadProfile, Tenants

Floats = NDArray[np.float64]
NEVER = -60.0  # a log weight that is not drawn while any other is left


def layer_weights(profile: LoadProfile, experts: int, layers: int, top_k: int, streams: Streams) -> Floats:
    """Popularity of each expert in each layer [L, E]: positive, mean 1 in a layer; all ones for a uniform profile.

    Zipf gives the expert of rank r the weight r^-exponent, ranks shuffled by layer; log-normal exp(sigma * N(0, 1)). A
    (low, high) pair is spread evenly over the layers, first to last; one layer gets its middle. Newcomers are the last
    experts of a layer; what training balances is balanced before they come.
    """
    logs = np.zeros((layers, experts))
    spread = _over_layers(profile.zipf if profile.zipf is not None else profile.log_normal, layers)
    for layer, slope in enumerate(spread):
        generator = streams.generator(f"routing/popularity/layer{layer}")
        if profile.zipf is not None:
            logs[layer] = -slope * np.log(generator.permutation(experts) + 1.0)
        else:
            logs[layer] = slope * generator.standard_normal(experts)
    if profile.balancing is not None:
        logs = balance(logs, top_k, profile.balancing)
    if profile.newcomers is not None:
        count = profile.newcomers.experts
        old = np.log(np.exp(logs[:, : experts - count]).mean(axis=1, keepdims=True))
        share = profile.newcomers.popularity
        logs[:, experts - count :] = old + (np.log(share) if share > 0.0 else NEVER)
    return normalized(logs)


def tenant_logs(tenants: Tenants, experts: int) -> Floats:
    """What each tenant adds to the log weights [N, E]: its own experts are the last ones of the layer, in turn."""
    pinned = tenants.count * tenants.experts
    added = np.zeros((tenants.count, experts))
    added[:, experts - pinned :] = NEVER
    own = experts - pinned + np.arange(pinned)
    added[np.arange(pinned) // tenants.experts, own] = np.log(tenants.preference)
    return added


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
