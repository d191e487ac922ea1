"""Contiguous placement: the first E/R experts on rank 0, the next on rank 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError


def expert_rank(experts: int, ranks: int) -> NDArray[np.int64]:
    """Expert e on rank e // (E/R); [E]. Raises where R does not divide E."""
    if ranks < 1 or experts % ranks:
        raise UserError(f"{experts} experts cannot be spread evenly over {ranks} expert-parallel ranks")
    return np.arange(experts) // (experts // ranks)
