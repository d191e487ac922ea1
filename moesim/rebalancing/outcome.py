"""What a study of rebalancing found, as plain rows; tables and pictures are made of them.

N steps, M samples, L layers, R ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement.balance import Balance
from moesim.rebalancing.charts import gain_chart, over_time_chart
from moesim.results.store import save_files
from moesim.step.migration import Cost

Floats = NDArray[np.float64]


class Range(NamedTuple):
    """A mean over seeds, and the least and the most of them."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Range:
        """Of one value a seed."""
        return Range(float(np.mean(values)), float(min(values)), float(max(values)))


@dataclass(frozen=True)
class Run:
    """One seed at one interval: `loads` of ranks [N, M, L, R], their balance, seconds `compute` [N] of each step,
    `wait` a step for changes of placement, their costs, and experts `moved` a layer and change."""

    loads: Floats
    balance: Balance
    compute: Floats
    wait: float
    costs: tuple[Cost, ...]
    moved: float

    @property
    def total(self) -> float:
        """Seconds of a mean step with its share of the changes."""
        return float(self.compute.mean()) + self.wait


@dataclass(frozen=True)
class Row:
    """One way to place: seconds of a mean `step`; of it `saved` by balance against experts in order that never move,
    `waited` for changes, and `gain`, the one less the other. `balance` by every definition. Of one change: experts
    `moved` a layer, seconds of `migration` on the links, bytes the busiest GPU sends, bytes `staged` on a GPU."""

    interval: int | None
    name: str
    step: Range
    saved: Range
    waited: Range
    gain: Range
    balance: Mapping[str, Range]
    moved: float
    migration: float
    bytes_up: float
    bytes_out: float
    staged: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        ranges = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Range)}
        balance = {name: value._asdict() for name, value in self.balance.items()}
        return {**asdict(self), **ranges, "balance": balance}


@dataclass(frozen=True)
class Rebalancing:
    """The answer: `rows`, experts in order and placed once first, then by interval; `best` (None where renewing is
    worth nothing); `best_by_seed`; seconds of an `even` step; the balance `over_time` of the first seed."""

    even: float
    rows: tuple[Row, ...]
    best: Row | None
    best_by_seed: tuple[int, ...]
    over_time: Mapping[str, tuple[Balance, ...]]
    name: str = "scenario"
    story: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def intervals(self) -> tuple[Row, ...]:
        """The rows that have an interval."""
        return tuple(row for row in self.rows if row.interval is not None)

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        never = self.rows[0].step.value
        if self.best is None:
            once = self.rows[1].gain.value
            held = f"one placement for good gains {once / never:.2%}" if once > 0 else "experts in order do as well"
            return f"renewing the placement is not worth its cost at any interval: {held}"
        best = self.best
        low, high = sorted((min(self.best_by_seed), max(self.best_by_seed)))
        span = f" ({low} to {high} over seeds)" if low != high else ""
        return (
            f"best: a new placement {best.name}{span}, {best.gain.value / never:.2%} of the step"
            f" ({best.gain.low / never:.2%} to {best.gain.high / never:.2%}) against experts in order"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "sentence": self.sentence,
            "even_step": self.even,
            "best_interval": self.best.interval if self.best else None,
            "best_interval_by_seed": list(self.best_by_seed),
            "rows": [row.as_dict() for row in self.rows],
            "balance_over_time": {name: [one.as_dict() for one in found] for name, found in self.over_time.items()},
            **self.story,
            "notes": list(self.notes),
        }

    def chart(self) -> Any:
        """The net gain against the interval, with what balance saves and what changes cost (altair)."""
        return gain_chart(self.as_dict())

    def balance_chart(self) -> Any:
        """SGLang's balancedness over time, never renewed and at the best interval (altair)."""
        return over_time_chart(self.as_dict())

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Writes `rebalancing.json`, `gain.svg` and `balance.svg` into `folder`, made where absent.

        Raises `FileError` where it cannot be written.
        """
        texts = {
            "gain.svg": _drawn(self.chart()),
            "balance.svg": _drawn(self.balance_chart()),
            "rebalancing.json": json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        }
        return save_files(folder, texts)


def _drawn(chart: Any) -> str:
    text = StringIO()
    chart.save(text, format="svg")
    return text.getvalue()
