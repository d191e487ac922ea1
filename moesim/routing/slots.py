"""Where the experts of each layer are held: slots of ranks, some of them several times.

L layers, R ranks, E experts, P slots of all ranks (rank 0's first), M replicas of the most replicated expert; n source
ranks, C copies of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.routing._slot_kernels import to_slots

Names = NDArray[np.uint16]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slots:
    """`expert` [L, P] in each slot; `share` [L, R, P] of a source rank's copies of its expert that a slot gets."""

    expert: Integers
    share: Floats
    experts: int
    ranks: int

    def __post_init__(self) -> None:
        layers, slots = self.expert.shape
        if slots % self.ranks or slots < self.experts or self.share.shape != (layers, self.ranks, slots):
            raise InternalError(f"{slots} slots of {self.experts} experts, {self.ranks} ranks, {self.share.shape}")
        held = np.sort(self.expert, axis=1)
        if held[:, 0].any() or (held[:, -1] != self.experts - 1).any() or (np.diff(held, axis=1) > 1).any():
            raise InternalError("an expert has no slot, or a slot no expert")

    @property
    def several(self) -> bool:
        """Whether any expert has several slots."""
        return bool(self.expert.shape[1] > self.experts)

    @cached_property
    def rank(self) -> Integers:
        """Rank of each slot [P]."""
        return np.repeat(np.arange(self.ranks, dtype=np.int64), self.expert.shape[1] // self.ranks)

    def rank_of(self, layer: int) -> Integers:
        """Rank of each expert of a layer [E], where each has one slot."""
        found = np.empty(self.experts, np.int64)
        found[self.expert[layer]] = self.rank
        return found

    def named(self, layer: int, choices: Names, first: int) -> Names:
        """Slot of each copy of the choices [n, T, K] of source ranks `first` and on; P for none.

        Successive copies of a source spread over replicas evenly (as `placement.choice.slot_of_copies`).
        """
        upper, slots = self._turns(layer)
        found = np.empty(choices.shape, np.uint16)
        flat = (choices.shape[0], -1)
        to_slots(np.ascontiguousarray(choices).reshape(flat), upper, slots, first, found.reshape(flat))
        return found

    def by_expert(self, layer: int, counts: NDArray[np.integer]) -> NDArray[np.int32]:
        """Counts of each expert [E], of those of a layer's slots [P]."""
        return np.bincount(self.expert[layer], counts, self.experts).astype(np.int32)

    def _turns(self, layer: int) -> tuple[Floats, NDArray[np.int32]]:
        """Slots of each expert [E, M], and where in [0, 1) the turn of each ends [R, E, M], R being 1 where all source
        ranks choose alike."""
        expert = self.expert[layer]
        counts = np.bincount(expert, minlength=self.experts)
        turn = np.arange(int(counts.max()))
        order, first = np.argsort(expert, kind="stable"), np.cumsum(counts) - counts
        slots = order[np.minimum(first[:, None] + turn, expert.size - 1)]
        share = self.share[layer, :1] if self.share.strides[1] == 0 else self.share[layer]
        there = turn < counts[:, None]
        upper = np.cumsum(np.where(there, share[:, slots], 0.0), axis=-1)
        upper[:, turn >= counts[:, None] - 1] = np.inf
        return upper, np.where(there, slots, -1).astype(np.int32)
