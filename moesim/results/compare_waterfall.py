"""The bars of a waterfall: from one step, or iteration, to another, a bar a part that changes; no drawing here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any, Literal

from moesim.errors import shorten
from moesim.results.chart_style import axis_unit
from moesim.units import show

FOLDED_OF_STEP = 0.005
FOLDED_OF_CHANGE = 0.05
"""Bars folded into one hide at most so much of the longer step, and of all that changes."""

SAME = 1e-6
"""What changes by no more than this share of a step takes the same time: a simulation's rounding moves that much."""

_SHOWN_FROM_ZERO = 0.25
_MOST_DECIMALS = 6
_MOST_SHARE = 1e12
_NAME = 34
"""Letters of a bar that names a whole."""


@dataclass(frozen=True)
class Whole:
    """A time that is compared: what it is called, and over what its parts are means."""

    name: str
    over: str

    @property
    def several(self) -> str:
        """More than one of it."""
        return f"{self.name}s"


STEP = Whole("step", "mean over GPUs")


@dataclass(frozen=True)
class Bar:
    """One bar from `begin` to `end` seconds: a whole from 0, or a part, from where the bar before it ends.

    `folded`: the parts that a bar of small changes holds.
    """

    name: str
    kind: Literal["whole", "part"]
    begin: float
    end: float
    folded: tuple[str, ...] = ()

    @property
    def change(self) -> float:
        """Seconds from begin to end."""
        return self.end - self.begin

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "begin": self.begin, "end": self.end, "folded": list(self.folded)}


def waterfall(
    names: tuple[str, str], steps: tuple[float, float], parts: Sequence[tuple[str, float]], whole: Whole = STEP
) -> tuple[Bar, ...]:
    """The first step (or other `whole`), the parts in the order given with the small ones in one bar, and the other
    step, in seconds."""
    shown, folded = fold(parts, max(steps))
    moves: list[tuple[str, float, tuple[str, ...]]] = [(name, change, ()) for name, change in shown]
    if folded:
        rest = sum(change for _, change in folded)
        moves.append((f"all else, {len(folded)} parts", rest, tuple(name for name, _ in folded)))
    called = f"{whole.name} of "
    steps_named = [called + middle_cut(name, _NAME - len(called)) for name in names]
    first, last, *labels = distinct([*steps_named, *(shorten(name) for name, _, _ in moves)])
    bars, level = [Bar(first, "whole", 0.0, steps[0])], steps[0]
    for label, (_, change, inside) in zip(labels, moves, strict=True):
        bars.append(Bar(label, "part", level, level + change, inside))
        level += change
    return (*bars, Bar(last, "whole", 0.0, steps[1]))


def fold(parts: Sequence[tuple[str, float]], longest: float) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Parts that get a bar of their own, and the least changed that share one; those that do not change are in neither.

    The changes folded, each taken as positive, add up to no more than the two limits allow.
    """
    moving = [part for part in parts if part[1]]
    moved = sum(abs(change) for _, change in moving)
    if moved <= SAME * longest:
        return [], []
    limit = min(FOLDED_OF_STEP * longest, FOLDED_OF_CHANGE * moved)
    folded, hidden = list[tuple[str, float]](), 0.0
    for part in sorted(moving, key=lambda part: abs(part[1])):
        hidden += abs(part[1])
        if hidden > limit:
            break
        folded.append(part)
    if len(folded) == 1:  # one part is better named
        folded = []
    names = {name for name, _ in folded}
    return [part for part in moving if part[0] not in names], [part for part in moving if part[0] in names]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where one occurs several times."""
    total, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if total[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def middle_cut(name: str, limit: int) -> str:
    """The name in at most `limit` characters, cut in its middle: names that begin alike often differ at the end."""
    text = shorten(name, max(limit, len(name)))
    return text if len(text) <= limit else f"{text[: limit - 9]}…{text[-8:]}"


def axis_begin(bars: Sequence[Bar]) -> float:
    """Where the axis of seconds begins: at zero, or nearer the changes where they would be too small to see."""
    levels = [bar.end for bar in bars]
    low, high = min(levels), max(levels)
    if high - low > _SHOWN_FROM_ZERO * high or high - low <= SAME * high:
        return 0.0
    # A round number that leaves the cut bars about a third of the picture.
    below = low - 0.5 * (high - low)
    unit = 10.0 ** floor(log10(high - low))
    return max(0.0, floor(below / unit) * unit)


def begin_text(bars: Sequence[Bar]) -> str:
    """Where the axis begins, for reading, in the unit of the bars; empty at zero."""
    begin, (factor, symbol) = axis_begin(bars), axis_unit([bar.end for bar in bars], "s")
    return f"{begin / factor:.10g} {symbol}" if begin else ""


def bar_texts(bars: Sequence[Bar]) -> list[tuple[str, str]]:
    """Seconds and share of the first step of every bar, for reading: one unit, and decimals that show every change."""
    factor, symbol = axis_unit([bar.end for bar in bars], "s")
    first, parts = bars[0].end, [abs(bar.change) for bar in bars if bar.kind == "part"]
    largest = max(parts, default=max(bar.end for bar in bars))
    texts = []
    for bar in bars:
        sign = "" if bar.kind == "whole" else "−" if bar.change < 0 else "+"
        number = _fixed(abs(bar.change) / factor, largest / factor)
        time = f"{number} {symbol}" if float(number) or not bar.change else show(abs(bar.change), "s")
        known = first > 0 and largest / first < _MOST_SHARE
        share = f"{sign}{_fixed(100 * abs(bar.change) / first, 100 * largest / first)} %" if known else "–"
        texts.append((sign + time, share))
    return texts


def _fixed(value: float, largest: float) -> str:
    """The value with as many decimals as show the largest with three digits."""
    decimals = min(_MOST_DECIMALS, max(0, 2 - floor(log10(largest)))) if largest > 0 else 0
    return f"{value:.{decimals}f}"
