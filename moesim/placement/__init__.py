"""Which rank holds which expert, by the strategy's name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError
from moesim.placement import contiguous

STRATEGIES: dict[str, Callable[[int, int], NDArray[np.int64]]] = {"contiguous": contiguous.expert_rank}


def expert_rank(experts: int, ranks: int, strategy: str = "contiguous") -> NDArray[np.int64]:
    """The expert-parallel rank [E] that holds each expert; raises UserError where the strategy cannot."""
    if strategy not in STRATEGIES:
        raise UnknownNameError("placement strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy](experts, ranks)
