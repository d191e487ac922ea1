"""What every router has in common: it turns logits into an assignment. One rule a file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.routing.assignment import Assignment
from moesim.specs.model import RouterSpec

Floats = NDArray[np.float64]


class Router(ABC):
    """A rule with its parameters, for a layer of E experts of which each token chooses K."""

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        if not 1 <= top_k <= experts:
            raise UserError(f"top_k is {top_k}; a token chooses between 1 and {experts} (all) experts")
        self.spec = spec
        self.experts = experts
        self.top_k = top_k

    @abstractmethod
    def choose(self, logits: Floats, bias: Floats | None = None) -> Assignment:
        """Assign tokens by their logits [T, E]; a bias [E] counts in the choice and not in the weights."""
