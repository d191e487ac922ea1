"""Seconds of an operation by the parts of its life, and the price of routed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Phases(NamedTuple):
    """Seconds of the three parts of one operation's life."""

    forward: float
    backward: float
    weight: float

    def plus(self, other: Phases) -> Phases:
        """Both, one after the other."""
        return Phases(*(mine + its for mine, its in zip(self, other, strict=True)))

    def times(self, factor: float) -> Phases:
        """Each part `factor` times as long."""
        return Phases(*(factor * mine for mine in self))

    @property
    def total(self) -> float:
        """Forward and backward together."""
        return sum(self)


NOTHING = Phases(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RowPrice:
    """What routed rows cost a rank: arithmetic a row, weights an active expert, other seconds a row (passes over memory
    and what a kernel spends on each row)."""

    flops: float
    weight_elements: float
    memory_seconds: float
