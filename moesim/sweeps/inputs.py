"""One input of a sensitivity: the range that it goes over, and what a value of it sets in the scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moesim.specs.sweep import Range
from moesim.sweeps.fields import FACTOR, LABELS, number_shown
from moesim.units import show

Values = dict[str, Any]
Setting = Callable[[float], Values]
"""From an input's value to the fields it sets. Coefficients, which have no field, stand under `CALIBRATION` by name."""
CALIBRATION = "cluster.calibration"


@dataclass(frozen=True)
class Input:
    """One input: its range or the values it can have, the scenario's own value (None: not stated), and why that range.

    `asked`: whether the user stated the range.
    """

    name: str
    field: str
    kind: Range | tuple[float, ...]
    base: float | None
    unit: str
    why: str
    setting: Setting
    asked: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return (self.kind.low, self.kind.high) if isinstance(self.kind, Range) else (min(self.kind), max(self.kind))

    def without(self, end: float) -> Input | None:
        """The same up to the scenario's own value on the side of `end`; None where nothing is left."""
        low, high = self.ends
        if isinstance(self.kind, tuple):
            left = tuple(value for value in self.kind if value != end)
            return replace(self, kind=left) if len(left) > 1 else None
        if self.base is None or not low < self.base < high:
            return None
        return replace(self, kind=Range(low=self.base if end == low else low, high=self.base if end == high else high))

    def shown(self, value: float | None) -> str:
        """A value of the input for reading."""
        if value is None:
            return "not stated"
        if self.unit == FACTOR:
            return f"x {value:.3g}"
        return show(value, self.unit) if self.unit else number_shown(value)


def of_field(
    field: str, kind: Range | tuple[float, ...], base: float | None, unit: str, why: str, *, asked: bool = False
) -> Input:
    """An input that is one field of the scenario."""
    return Input(LABELS.get(field, (field, ""))[0], field, kind, base, unit, why, lambda value: {field: value}, asked)
