"""Placements that look at nothing: experts in order, or dealt out in turn.

E experts, P slots, R ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import check_ranks

Integers = NDArray[np.int64]


def contiguous(experts: int, ranks: int, redundant: int = 0) -> Integers:
    """Expert of each slot [P], in order: the first E/R on rank 0, the next on rank 1.

    Redundant slots hold the experts from 0 on again, as SGLang's "trivial" initial expert location does.
    """
    check_ranks(experts + redundant, ranks)
    return np.arange(experts + redundant, dtype=np.int64) % experts


def round_robin(experts: int, ranks: int, redundant: int = 0) -> Integers:
    """Expert of each slot [P], dealt out: expert e on rank e mod R (vLLM's expert placement strategy of that name)."""
    order = contiguous(experts, ranks, redundant)
    return order.reshape(-1, ranks).T.ravel()
