"""Expert capacity: how many rows an expert takes, and which copies are dropped, as each library does it.

T tokens, E experts, K choices. Formulas as in the libraries' sources; their reading is ours, of the files named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.routing.assignment import Assignment
from moesim.specs.routing import CapacitySpec, Dialect

Scope = Literal["source-rank", "whole-group"]
Order = Literal["choice-major", "token-major"]
Formula = Callable[[float, int, int, int], int]


@dataclass(frozen=True)
class DialectRule:
    """One library's capacity.

    `formula(factor, T, E, K)`, T counted within `scope`: the tokens of one source rank, or of the whole expert-parallel
    group. `order`: all first choices before all second ones, or token by token; within it, position decides.
    """

    formula: Formula
    scope: Scope
    order: Order
    source: str


DIALECTS: dict[Dialect, DialectRule] = {
    "switch": DialectRule(
        lambda factor, T, E, K: max(round(factor * T / E), 4),
        "source-rank",
        "choice-major",
        "flaxformer, architectures/moe: moe_layers.py, routing.py",
    ),
    "gshard": DialectRule(
        lambda factor, T, E, K: max(int(factor * T / E), 1),
        "source-rank",
        "choice-major",
        "GShard paper, algorithm 1: 2N/(G*E) at factor 2 for its two choices; the factor does not include K",
    ),
    "megatron": DialectRule(
        lambda factor, T, E, K: math.ceil(T * K / E * factor),
        "source-rank",
        "token-major",
        "Megatron-LM, moe_utils.py: get_capacity, drop policy 'position'",
    ),
    "deepspeed": DialectRule(
        lambda factor, T, E, K: max(math.ceil(T / E * (factor * K)), 4),
        "source-rank",
        "token-major",
        "DeepSpeed, moe/sharded_moe.py: topkgating, drop policy 'position'",
    ),
    "tutel": DialectRule(
        lambda factor, T, E, K: K * int(factor * math.ceil(T / E)),
        "source-rank",
        "choice-major",
        "Tutel, impls/fast_dispatch.py: extract_critical",
    ),
    "megablocks": DialectRule(
        lambda factor, T, E, K: int(factor * K * T / E),
        "whole-group",
        "token-major",
        "MegaBlocks, layers/moe.py: expert_capacity, T counted over all ranks; choices sorted as flattened [T, K]",
    ),
    "v-moe": DialectRule(
        lambda factor, T, E, K: -(-math.ceil(T * K * factor / E) // 4) * 4,
        "source-rank",
        "choice-major",
        "vmoe/moe.py: compute_capacity, rounded up to a multiple of 4",
    ),
    "mesh-tf": DialectRule(
        lambda factor, T, E, K: max(min(T, int(T * factor / E)), 4),
        "source-rank",
        "choice-major",
        "mesh_tensorflow/transformer/moe.py: top-2 gating",
    ),
}


@dataclass(frozen=True)
class CapacityRule:
    """A capacity factor in a library's dialect; what is above capacity is dropped, the last in position first."""

    factor: float
    dialect: DialectRule

    @classmethod
    def of(cls, spec: CapacitySpec) -> CapacityRule:
        """The rule that a spec describes."""
        return cls(spec.factor, DIALECTS[spec.dialect])

    @property
    def scope(self) -> Scope:
        """Within which tokens the capacity counts."""
        return self.dialect.scope

    @property
    def order(self) -> Order:
        """Which copies come first."""
        return self.dialect.order

    def capacity(self, tokens: int, experts: int, top_k: int) -> int:
        """Rows that one expert takes of `tokens` tokens, those within the rule's scope."""
        return self.dialect.formula(self.factor, tokens, experts, top_k)

    def apply(self, assignment: Assignment, experts: int) -> NDArray[np.bool_]:
        """Which copies are kept [T, K]; the assignment holds the tokens within the rule's scope, in their order."""
        tokens, top_k = assignment.experts.shape
        return keep_first(assignment.experts, self.capacity(tokens, experts, top_k), self.order)


def keep_first(choices: NDArray[np.int64], rows: int, order: Order) -> NDArray[np.bool_]:
    """Whether each copy [T, K] is among the first `rows` of its expert, in the given order."""
    line = choices.T.ravel() if order == "choice-major" else choices.ravel()
    by_expert = np.argsort(line, kind="stable")
    experts_in_turn = line[by_expert]
    starts = np.flatnonzero(np.diff(experts_in_turn, prepend=-1))
    lengths = np.diff(starts, append=line.size)
    place = np.empty(line.size, dtype=np.int64)
    place[by_expert] = np.arange(line.size) - np.repeat(starts, lengths)
    kept = place < rows
    return kept.reshape(choices.T.shape).T if order == "choice-major" else kept.reshape(choices.shape)
