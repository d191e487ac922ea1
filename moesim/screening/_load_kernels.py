"""The compiled prices of routed rows, and the fullest ranks of runs of layers.

L MoE layers, E experts, R ranks, D devices of all layouts, T runs of neighbouring layers of all devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Floats, compiled

Ints = NDArray[np.int64]


@compiled
def price_rows(rows: Floats, active: Floats, ranks: Floats, law: Floats, each: float, found: Floats) -> None:
    """Fills `found` [4, L]: product seconds and rows of the rank that takes longest in a layer, and of the mean rank.

    `rows`, `active` [L, E] and `ranks` [L, R] are expected rows and the chance of any; `law` [3] seconds of a row's
    arithmetic and of an expert's weights, and what both are multiplied by; `each` row takes as long besides.
    """
    count = ranks.shape[1]
    local = rows.shape[1] // count
    for layer in range(len(rows)):
        longest, total = -1.0, 0.0
        for rank in range(count):
            products = 0.0
            for expert in range(rank * local, (rank + 1) * local):
                arithmetic, weights = rows[layer, expert] * law[0], active[layer, expert] * law[1]
                products += np.sqrt(arithmetic * arithmetic + weights * weights)
            products *= law[2]
            total += products
            if products + each * ranks[layer, rank] > longest:
                longest = products + each * ranks[layer, rank]
                found[0, layer], found[1, layer] = products, ranks[layer, rank]
        found[2, layer], found[3, layer] = total / count, ranks[layer].mean()


@compiled
def fullest_ranks(rows: Floats, runs: Ints, edges: Ints, mean: Floats, most: Floats) -> None:
    """Fills [D] with the rows of the rank that a device's layers load most on average, and of any rank in any of them.

    `rows` [L, R]; `runs` [T, 2] first layer and the one behind the last, `edges` [D + 1] of the devices' runs.
    """
    layers, ranks = rows.shape
    sums, largest = np.zeros((layers + 1, ranks)), np.empty(layers)
    for layer in range(layers):
        largest[layer] = rows[layer].max()
        for rank in range(ranks):
            sums[layer + 1, rank] = sums[layer, rank] + rows[layer, rank]
    total = np.empty(ranks)
    for device in range(len(mean)):
        total[:] = 0.0
        count, top = 0, 0.0
        for run in range(edges[device], edges[device + 1]):
            first, last = runs[run, 0], runs[run, 1]
            count += last - first
            for rank in range(ranks):
                total[rank] += sums[last, rank] - sums[first, rank]
            for layer in range(first, last):
                top = max(top, largest[layer])
        mean[device], most[device] = total.max() / count, top
