"""What some tools record instead of each token's choices: copies by expert, or only how many experts were used.

N rows (training or forward steps, or domains), L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.traces.trace import RouterTrace, TraceMeta


@dataclass(frozen=True)
class RouterCounts:
    """Copies that each expert got in each row [N, L, E]; `domain` [N] (index into the header's) and `step` [N] of the
    tool's own counting (-1 where unknown) say what a row is."""

    counts: NDArray[np.int64]
    domain: NDArray[np.int32]
    step: NDArray[np.int32]
    meta: TraceMeta

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Tokens of each row and layer [N, L]: copies over choices a token."""
        return np.asarray(self.counts.sum(axis=-1) / self.meta.top_k)

    @property
    def total(self) -> NDArray[np.int64]:
        """Copies of all rows together [L, E]."""
        return np.asarray(self.counts.sum(axis=0))


@dataclass(frozen=True)
class ExpertsUsed:
    """How many experts had a token in each forward pass, mean of layers: `used` [N], `sequences` [N] in the batch,
    `tokens` [N] computed, `seconds` [N] it took (NaN where unknown). `prefill` [N]: prefill, otherwise decode."""

    used: NDArray[np.float64]
    sequences: NDArray[np.int64]
    tokens: NDArray[np.int64]
    seconds: NDArray[np.float64]
    prefill: NDArray[np.bool_]
    source: str = ""
    note: str = ""


Recording = RouterTrace | RouterCounts | ExpertsUsed
