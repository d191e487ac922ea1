"""How even the load of ranks is: the definitions in use, each once.

L layers, R ranks; `rank_loads` [..., L, R] (leading axes: batches or iterations).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.traces import measures


@dataclass(frozen=True)
class Balance:
    """One load by every definition, means over layers (and batches). Each comes from the busiest rank of a layer.

    `max_over_mean`: busiest over mean; 1 is even. `mean_over_max`: mean over busiest, SGLang's balancedness; 1 is even.
    `excess`: (max - mean) / mean, TensorRT-LLM's imbalance ratio; 0 is even. `ratio_of_sums`: the means of all layers
    over the maxima of all layers, vLLM's balancedness (a mean over batches of it): what the busiest ranks' time amounts
    to where layers wait for each other in turn.
    """

    max_over_mean: float
    mean_over_max: float
    excess: float
    ratio_of_sums: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


def balance(rank_loads: NDArray[np.number]) -> Balance:
    """The balance of loads [..., L, R] by every definition."""
    ratio = measures.max_over_mean(rank_loads)
    most = rank_loads.max(axis=-1).sum(axis=-1)
    sums = np.divide(rank_loads.mean(axis=-1).sum(axis=-1), most, out=np.ones(np.shape(most)), where=most > 0)
    return Balance(
        max_over_mean=float(ratio.mean()),
        mean_over_max=float((1.0 / ratio).mean()),
        excess=float(ratio.mean() - 1.0),
        ratio_of_sums=float(sums.mean()),
    )
