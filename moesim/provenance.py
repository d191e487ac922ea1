"""Where a number comes from, and the number with its range: every answer carries both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Basis = Literal["measured", "fitted", "datasheet", "paper", "derived", "assumed"]
"""From most to least trustworthy; `derived` follows by arithmetic from stated facts."""

_TRUST: dict[str, int] = {
    "derived": 0,
    "measured": 1,
    "fitted": 2,
    "datasheet": 3,
    "paper": 4,
    "assumed": 5,
}
if set(_TRUST) != set(get_args(Basis)):
    raise RuntimeError("every basis needs a place in the order of trust")


def worst(bases: Iterable[Basis]) -> Basis:
    """The least trustworthy of `bases`: an answer is as good as its worst part. Exact arithmetic alone is `derived`."""
    return max(bases, key=_TRUST.__getitem__, default="derived")


@dataclass(frozen=True)
class Source:
    """Where one catalog number was read: title or place, date of reading (ISO), and its basis."""

    basis: Basis
    where: str
    date: str = ""


@dataclass(frozen=True)
class Quantity:
    """A number with unit (SI), range [low, high], basis, and a note that explains it."""

    value: float
    unit: str
    low: float
    high: float
    basis: Basis
    note: str = ""

    @classmethod
    def exact(cls, value: float, unit: str, note: str = "", basis: Basis = "derived") -> Quantity:
        """A quantity without a range: it follows from the scenario by arithmetic."""
        return cls(value, unit, value, value, basis, note)

    @classmethod
    def within(cls, value: float, unit: str, relative: float, basis: Basis, note: str = "") -> Quantity:
        """`value` with a multiplicative range: value / (1 + relative) to value * (1 + relative)."""
        low, high = sorted((value / (1 + relative), value * (1 + relative)))
        return cls(value, unit, low, high, basis, note)

    def scaled(self, factor: float, unit: str, note: str = "") -> Quantity:
        """This quantity times a positive exact factor, in another unit."""
        return Quantity(self.value * factor, unit, self.low * factor, self.high * factor, self.basis, note or self.note)

    def inverse(self, factor: float, unit: str, note: str = "") -> Quantity:
        """`factor` over this quantity; the ends of the range swap."""
        return Quantity(factor / self.value, unit, factor / self.high, factor / self.low, self.basis, note or self.note)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)
