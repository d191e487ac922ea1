"""What a law answers to a case: numbers with ranges, and the settings under which it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.provenance import Basis, Quantity, worst


@dataclass(frozen=True)
class Prediction:
    """A predicted metric in SI with its range, basis and notes."""

    value: float
    low: float
    high: float
    basis: Basis
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How cases are asked: the user's calibration file, whether steps are simulated, and the metrics measured."""

    calibration: str | None = None
    simulate: bool = False
    metrics: tuple[str, ...] = ()


def within(value: float, relative: float, basis: Basis, notes: Iterable[str] = ()) -> Prediction:
    """A value with the multiplicative range of its law."""
    quantity = Quantity.within(float(value), "", relative, basis)
    return Prediction(quantity.value, quantity.low, quantity.high, basis, tuple(dict.fromkeys(notes)))


def added(parts: Iterable[Prediction]) -> Prediction:
    """The sum of parts that come one after another; their ranges add up, for one law's error is in all of them."""
    known = list(parts)
    notes = tuple(dict.fromkeys(note for part in known for note in part.notes))
    low, high = sum(part.low for part in known), sum(part.high for part in known)
    return Prediction(sum(part.value for part in known), low, high, worst(part.basis for part in known), notes)


def rate(work: float, time: Prediction) -> Prediction:
    """Work over a time; the ends of the range swap."""
    return Prediction(work / time.value, work / time.high, work / time.low, time.basis, time.notes)
