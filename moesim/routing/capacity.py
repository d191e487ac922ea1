"""Expert capacity: how many rows an expert takes, and which copies stay, as each library does it.

T tokens, E experts, K choices, D devices. Formulas as in the libraries' sources; their reading is ours, of the files
named. What happens to the copies that are too many is in `overflow`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.specs.routing import CapacitySpec, Dialect, Order, Overflow, Priority, Rounding, Scope

Share = Literal["tokens", "copies", "whole-tokens-of-each-choice"]
Booleans = NDArray[np.bool_]

ROUND: dict[Rounding, Callable[[float], int]] = {"down": math.floor, "up": math.ceil, "nearest": round}


@dataclass(frozen=True)
class Precedence:
    """Which copies of a full expert stay: those of highest `priority`, and of equal ones the first in `order`."""

    priority: Priority
    order: Order

    @property
    def by_gate(self) -> bool:
        """Whether the gates decide."""
        return self.priority in ("probability", "batch-prioritized")


@dataclass(frozen=True)
class DialectRule:
    """One library's capacity: the even `share` x the factor, rounded, then at least `minimum`, then up to a `multiple`.

    The even share is that of an expert in the tokens (T/E), in their copies (T*K/E), or, of each choice by itself,
    in the tokens rounded up (K times the result; Tutel). T counts the tokens within `scope`: of one source rank, or of
    the whole expert-parallel group. `factor_first`: the library multiplies by the factor before it divides by E, on
    which the last bit of the product, and so a row, can depend. `at_most_tokens`: no more rows than T, unless that is
    below the minimum. `few`: the precedence where K has one of its own. "nearest" rounds halves to even.
    """

    share: Share
    rounding: Rounding
    precedence: Precedence
    source: str
    minimum: int = 0
    multiple: int = 1
    scope: Scope = "source-rank"
    factor_first: bool = False
    at_most_tokens: bool = False
    few: Mapping[int, Precedence] = field(default_factory=dict, hash=False)

    def rows(self, factor: float, T: int, E: int, K: int) -> int:
        """Rows that one expert takes of T tokens, each with K choices."""
        each = self.share == "whole-tokens-of-each-choice"
        shared = -(-T // E) * E if each else T * K if self.share == "copies" else T
        rows = ROUND[self.rounding](factor * shared / E if self.factor_first else factor * (shared / E))
        rows = rows * K if each else rows
        rows = max(min(rows, T) if self.at_most_tokens else rows, self.minimum)
        return -(-rows // self.multiple) * self.multiple

    def changed(self, spec: CapacitySpec) -> DialectRule:
        """This rule with the numbers and the precedence that a spec gives in their place."""

        def given(*names: str) -> dict[str, Any]:
            return {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}

        first = given("priority", "order")
        few = {top_k: replace(precedence, **first) for top_k, precedence in self.few.items()}
        numbers = given("rounding", "minimum", "multiple", "scope")
        return replace(self, precedence=replace(self.precedence, **first), few=few, **numbers)


CHOICE_BY_CHOICE = Precedence("position", "choice-major")
TOKEN_BY_TOKEN = Precedence("position", "token-major")
HIGHEST_GATE = Precedence("probability", "token-major")

DIALECTS: dict[Dialect, DialectRule] = {
    "switch": DialectRule(
        share="tokens",
        rounding="nearest",
        precedence=CHOICE_BY_CHOICE,
        minimum=4,
        factor_first=True,
        source="flaxformer, architectures/moe: moe_layers.py, routing.py; also batch-prioritized",
    ),
    "gshard": DialectRule(
        share="tokens",
        rounding="down",
        precedence=CHOICE_BY_CHOICE,
        minimum=1,
        factor_first=True,
        source="GShard paper, algorithm 1: 2N/(G*E) at factor 2 for its two choices; the factor does not include K",
    ),
    "megatron": DialectRule(
        share="copies",
        rounding="up",
        precedence=HIGHEST_GATE,
        source="Megatron-LM, moe_utils.py: get_capacity, drop policy 'probs'; also 'position'",
    ),
    "deepspeed": DialectRule(
        share="copies",
        rounding="up",
        precedence=HIGHEST_GATE,
        minimum=4,
        few={1: Precedence("random", "token-major"), 2: CHOICE_BY_CHOICE},
        source="DeepSpeed, moe/sharded_moe.py: top1gating with random token selection, top2gating by position, "
        "topkgating with drop policy 'probs' (also 'position'); the layer's minimum",
    ),
    "tutel": DialectRule(
        share="whole-tokens-of-each-choice",
        rounding="down",
        precedence=CHOICE_BY_CHOICE,
        source="Tutel, impls/fast_dispatch.py: extract_critical; also batch-prioritized; an alignment is a multiple",
    ),
    "megablocks": DialectRule(
        share="copies",
        rounding="down",
        precedence=TOKEN_BY_TOKEN,
        scope="whole-group",
        source="MegaBlocks, layers/moe.py: expert_capacity, T over all ranks; choices sorted as flattened [T, K]",
    ),
    "v-moe": DialectRule(
        share="copies",
        rounding="up",
        precedence=CHOICE_BY_CHOICE,
        multiple=4,
        factor_first=True,
        source="vmoe/moe.py: compute_capacity, rounded up to a multiple of 4; also batch-prioritized",
    ),
    "mesh-tf": DialectRule(
        share="tokens",
        rounding="down",
        precedence=CHOICE_BY_CHOICE,
        minimum=4,
        factor_first=True,
        at_most_tokens=True,
        source="mesh_tensorflow/transformer/moe.py: top-2 gating; switch_max is by probability",
    ),
}


@dataclass(frozen=True)
class CapacityRule:
    """A capacity factor in a library's dialect, and what becomes of the copies beyond it."""

    factor: float
    dialect: DialectRule
    overflow: Overflow = "drop"
    per_rank: bool = False

    @classmethod
    def of(cls, spec: CapacitySpec) -> CapacityRule:
        """The rule that a spec describes."""
        return cls(spec.factor, DIALECTS[spec.dialect].changed(spec), spec.overflow, spec.per == "rank")

    @property
    def scope(self) -> Scope:
        """Within which tokens the capacity counts."""
        return self.dialect.scope

    @property
    def order(self) -> Order:
        """Which copies come first, where K has no order of its own."""
        return self.dialect.precedence.order

    @property
    def priority(self) -> Priority:
        """Which copies stay, where K has no priority of its own."""
        return self.dialect.precedence.priority

    def precedence(self, top_k: int) -> Precedence:
        """Which copies stay where each token has `top_k`."""
        return self.dialect.few.get(top_k, self.dialect.precedence)

    def capacity(self, tokens: int, experts: int, top_k: int) -> int:
        """Rows that one expert takes of `tokens` tokens, those within the rule's scope."""
        return self.dialect.rows(self.factor, tokens, experts, top_k)


def keep_first(choices: NDArray[np.integer], rows: int, order: Order) -> Booleans:
    """Whether each copy [T, K] is among the first `rows` of its expert, in the given order; never, if negative."""
    if order == "choice-major":
        return _among_first(choices.T.ravel(), rows).reshape(choices.T.shape).T
    return _among_first(choices.ravel(), rows).reshape(choices.shape)


def device_limit(
    choices: NDArray[np.integer],
    gates: NDArray[np.floating],
    place: NDArray[np.integer],
    rows: int,
) -> Booleans:
    """Which copies [T, K] stay where each device takes `rows` of them, those of highest gate first.

    DeepSeek-V2's token dropping (report, section 2.2.4: a device's computational budget, lowest affinity dropped
    first; that it exempts a tenth of the training sequences is left out). `place` [E] is each expert's device;
    `choices` E or -1 are none.
    """
    where = np.append(place, -1)[choices].ravel()
    queue = np.argsort(-gates.ravel(), kind="stable")
    kept = np.empty(where.size, bool)
    kept[queue] = _among_first(where[queue], rows)
    return np.asarray(kept.reshape(choices.shape))


def _among_first(names: NDArray[np.integer], rows: int) -> Booleans:
    """Whether each name is among the first `rows` of its kind; negative names are none."""
    by_name = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.diff(names[by_name], prepend=int(names.min(initial=0)) - 1))
    lengths = np.diff(starts, append=names.size)
    place = np.empty(names.size, dtype=np.int64)
    place[by_name] = np.arange(names.size) - np.repeat(starts, lengths)
    return (place < rows) & (names >= 0)
