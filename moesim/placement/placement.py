"""Which expert every slot of every rank holds, and what follows from it.

L layers, R ranks, P slots of all ranks (rank 0's first), E experts; a slot holds one expert's weights of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import UserError

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """The placement of `experts` experts: `expert_of_slot` [L, R, slots of a rank], physical to logical.

    Raises `UserError` where an expert has no slot, or a slot no expert.
    """

    expert_of_slot: Integers
    experts: int

    def __post_init__(self) -> None:
        self.check()

    @staticmethod
    def of_slots(physical: ArrayLike, ranks: int, experts: int) -> Placement:
        """From the expert of each slot [L, P], or [P] of a single layer, an equal number of slots a rank."""
        slots = np.atleast_2d(np.asarray(physical, np.int64))
        check_ranks(slots.shape[-1], ranks)
        return Placement(slots.reshape(len(slots), ranks, -1), experts)

    def check(self) -> None:
        """Raises `UserError` unless every slot holds an expert and every expert has a slot in every layer."""
        slots = self.expert_of_slot
        if slots.ndim != 3 or slots.dtype.kind not in "iu" or 0 in slots.shape:
            raise UserError(f"a placement is [layers, ranks, slots of a rank] of expert numbers, not {slots.shape}")
        if slots.min() < 0 or slots.max() >= self.experts:
            raise UserError(f"a slot holds an expert beyond the {self.experts} of a layer")
        missing = np.argwhere(self.replica_counts == 0)
        if len(missing):
            layer, expert = missing[0]
            raise UserError(f"expert {expert} of layer {layer} has no slot ({len(missing)} in all have none)")

    @property
    def layers(self) -> int:
        """L."""
        return int(self.expert_of_slot.shape[0])

    @property
    def ranks(self) -> int:
        """R."""
        return int(self.expert_of_slot.shape[1])

    @property
    def slots(self) -> int:
        """Slots of a rank."""
        return int(self.expert_of_slot.shape[2])

    @property
    def redundant(self) -> int:
        """Slots of a layer beyond one an expert."""
        return self.ranks * self.slots - self.experts

    @property
    def physical(self) -> Integers:
        """Expert of each slot of a layer [L, P]."""
        return self.expert_of_slot.reshape(self.layers, -1)

    @cached_property
    def replica_counts(self) -> Integers:
        """How many slots hold each expert [L, E]."""
        return counted(self.expert_of_slot.reshape(len(self.expert_of_slot), -1), self.experts)

    @cached_property
    def replica_slots(self) -> Integers:
        """Slots of each expert in order [L, E, M], M of the most replicated one; -1 where it has fewer."""
        order = np.argsort(self.physical, axis=-1, kind="stable")
        first = np.cumsum(self.replica_counts, axis=-1) - self.replica_counts
        turn = np.arange(int(self.replica_counts.max()))
        at = np.minimum(first[..., None] + turn, order.shape[-1] - 1)
        found = np.take_along_axis(order[:, None, :], at, axis=-1)
        return np.where(turn < self.replica_counts[..., None], found, -1)

    def replicas(self, layer: int, expert: int) -> Integers:
        """The slots, counted through all ranks, that hold an expert of a layer."""
        return np.flatnonzero(self.physical[layer] == expert)

    @property
    def rank_of(self) -> Integers:
        """Rank of each expert's first slot [L, E]: its only one where nothing is redundant."""
        return self.replica_slots[:, :, 0] // self.slots

    @property
    def weights_per_rank(self) -> int:
        """Experts' weights that a rank holds, all layers together; slots are equal, so all ranks hold as many."""
        return self.layers * self.slots

    @property
    def extra_weights_per_rank(self) -> float:
        """Of these, how many are beyond the rank's even share of the experts."""
        return self.layers * self.redundant / self.ranks


def counted(physical: Integers, experts: int) -> Integers:
    """How often each expert stands in each row [L, E] of slots [L, P]."""
    keys = physical + np.arange(len(physical))[:, None] * experts
    return np.bincount(keys.ravel(), minlength=len(physical) * experts).reshape(len(physical), experts)


def check_ranks(slots: int, ranks: int) -> int:
    """Slots of a rank; raises `UserError` where `ranks` ranks cannot hold `slots` evenly."""
    if ranks < 1 or slots % ranks:
        raise UserError(f"{slots} experts cannot be spread evenly over {ranks} expert-parallel ranks")
    return slots // ranks
