"""What every router has in common: it turns logits into an assignment. One rule a file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.routing.assignment import Assignment
from moesim.specs.model import RouterSpec

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Effect:
    """What a rule does, in a sentence each: to dispatched bytes, to drops, and to balance."""

    bytes: str
    drops: str
    balance: str


@dataclass(frozen=True)
class Batch:
    """What a router may look at besides logits: each token's sequence [T] and its id in the vocabulary [T] (both None
    where unknown), and a generator for rules that draw (None: they draw nothing and take the likeliest)."""

    sequence: Integers | None = None
    token_id: Integers | None = None
    generator: np.random.Generator | None = None


NO_BATCH = Batch()


class Router(ABC):
    """A rule with its parameters, for a layer of E experts of which each token chooses K (about K where it varies).

    `balanced`: every expert gets the same rows by construction, to within one in each batch (or sequence) that it is
    given. `by_sequence`: all tokens of a sequence choose alike. `variable`: tokens differ in the number of their
    experts. `slotted`: rows are slots instead of tokens. `exchanges`: all-to-all pairs of a layer. `only_top_k`: the
    one K that the rule knows (None: any).
    """

    effect: ClassVar[Effect]
    only_top_k: ClassVar[int | None] = None
    takes_bias: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = False
    balanced: bool = False
    by_sequence: bool = False
    variable: bool = False
    slotted: bool = False

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        if not 1 <= top_k <= experts:
            raise UserError(f"top_k is {top_k}; a token chooses between 1 and {experts} (all) experts")
        if self.only_top_k is not None and top_k != self.only_top_k:
            raise UserError(f"router rule {spec.rule} works with top_k = {self.only_top_k} only, not {top_k}")
        if spec.bias and not self.takes_bias:
            raise UserError(f"router rule {spec.rule} takes no bias; set bias to false")
        if spec.groups > 1 and not self.takes_groups:
            raise UserError(f"router rule {spec.rule} knows no groups; set groups to 1")
        self.spec = spec
        self.experts = experts
        self.top_k = top_k

    @property
    def evened(self) -> bool:
        """Whether what is popular is undone within each batch, all but for rounding."""
        return self.balanced

    @property
    def exchanges(self) -> int:
        """All-to-all pairs (dispatch and combine) of a layer."""
        return 1

    def choose(self, logits: Floats, bias: Floats | None = None, batch: Batch = NO_BATCH) -> Assignment:
        """Assign tokens by their logits [T, E]; a bias [E] counts in the choice and not in the weights."""
        logits = np.asarray(logits, dtype=np.float64)
        if logits.ndim != 2 or logits.shape[1] != self.experts:
            raise UserError(f"logits have the shape {logits.shape}; expected [tokens, {self.experts}]")
        if bias is not None and not self.takes_bias:
            raise UserError(f"router rule {self.spec.rule} takes no bias")
        if bias is not None and np.shape(bias) != (self.experts,):
            raise UserError(f"the bias has the shape {np.shape(bias)}; expected [{self.experts}]")
        for name, values in (("sequence", batch.sequence), ("token_id", batch.token_id)):
            if values is not None and np.shape(values) != logits.shape[:1]:
                raise UserError(f"the batch's {name} has the shape {np.shape(values)}; expected [{len(logits)}]")
        return self._assign(logits, bias, batch)

    def copies(self, tokens: float, sequences: float) -> float:
        """Rows that the experts get of so many tokens, in so many sequences, on average at even popularity."""
        if not self.variable:
            return tokens * self.top_k
        return tokens * float(self.expected(np.ones(self.experts)).sum())

    @abstractmethod
    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        """The rule itself, on checked float64 logits that it must not change."""

    @abstractmethod
    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] that each expert gets of one token, on average, where logits are log(weights [..., E]) plus
        Gumbel noise: the closed form of `choose`."""
