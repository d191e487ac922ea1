"""What a sensitivity brings: every input's effect on the answer, as a table, pictures, plain data, and files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.errors import shorten
from moesim.provenance import Quantity
from moesim.results.store import save_files
from moesim.sweeps.inputs import Input
from moesim.sweeps.sobol import Index

if TYPE_CHECKING:
    import pandas as pd

    from moesim.sweeps.sensitivity_charts import SensitivityCharts


@dataclass(frozen=True)
class End:
    """One end of an input's range: its value, the metric there (None: no answer), what became of it, and why."""

    at: float
    value: float | None
    status: str
    reason: str

    @property
    def why(self) -> str:
        """Why there is no answer."""
        return f"{self.status}: {shorten(self.reason, 200)}"


@dataclass(frozen=True)
class Effect:
    """One input alone at both ends, against the scenario's own answer `base`; its Sobol indices where asked for."""

    input: Input
    low: End
    high: End
    base: float
    first: Index | None = None
    total: Index | None = None

    @property
    def ends(self) -> tuple[End, End]:
        """Both ends, the low one first."""
        return self.low, self.high

    @property
    def answered(self) -> bool:
        """Whether there is an answer at an end other than the scenario's own value."""
        return any(end.status == "done" and end.at != self.input.base for end in self.ends)

    @property
    def swing(self) -> float:
        """From the least to the largest answer of base and ends, in the metric's unit."""
        values = [self.base, *(end.value for end in self.ends if end.value is not None)]
        return max(values) - min(values)

    @property
    def reason(self) -> str:
        """Why an end has no answer; empty where both have."""
        ends = zip(("low", "high"), self.ends, strict=True)
        return "; ".join(f"{side} end {end.why}" for side, end in ends if end.status != "done")

    def as_dict(self) -> dict[str, Any]:
        """One row of the table: SI; None where there is no answer, or no index."""
        one, swing = self.input, self.swing if self.answered else None
        row: dict[str, Any] = {"input": one.name, "field": one.field, "unit": one.unit}
        row |= {"low": self.low.at, "base": one.base, "high": self.high.at}
        row |= {"at_low": self.low.value, "at_high": self.high.value, "swing": swing}
        row["swing_fraction"] = swing / abs(self.base) if swing is not None and self.base else None
        for name, index in (("first", self.first), ("total", self.total)):
            if index is not None:
                row |= {name: index.value, f"{name}_low": index.low, f"{name}_high": index.high}
        return {**row, "reason": self.reason, "why": one.why}


@dataclass(frozen=True)
class Sensitivity:
    """The inputs of a scenario by their effect on one metric, the strongest first; `base` is the scenario's own answer.

    `samples`: of the Sobol indices, None for a tornado; `notes`: what a reader should know.
    """

    name: str
    metric: str
    base: Quantity
    effects: tuple[Effect, ...]
    samples: int | None
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """How the inputs were moved."""
        return "tornado" if self.samples is None else "sobol"

    @property
    def widest(self) -> float:
        """The widest half interval of any index: how well the shares are known. 0 for a tornado."""
        indices = [index for effect in self.effects for index in (effect.first, effect.total) if index is not None]
        return max((index.reach for index in indices), default=0.0)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an input: its low, own and high value, the metric at both ends, the swing, with `sobol` the
        first-order and total index and their 90 % confidence, why an end has no answer, and why this range."""
        from pandas import DataFrame

        return DataFrame(effect.as_dict() for effect in self.effects)

    @property
    def charts(self) -> SensitivityCharts:
        """Pictures: `tornado()`, and `sobol()` where indices were asked for."""
        from moesim.sweeps.sensitivity_charts import SensitivityCharts

        return SensitivityCharts(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "scenario": self.name,
            "metric": self.metric,
            "base": self.base.as_dict(),
            "method": self.method,
            "samples": self.samples,
            "inputs": [effect.as_dict() for effect in self.effects],
            "notes": list(self.notes),
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes `sensitivity.json`, `sensitivity.csv` and the pictures (SVG) into `folder`, made where absent.

        Raises `FileError` where it cannot be written.
        """
        texts = {"sensitivity.csv": self.table.to_csv(index=False), "tornado.svg": _drawn(self.charts.tornado())}
        if self.samples is not None:
            texts["sobol.svg"] = _drawn(self.charts.sobol())
        document = json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        return save_files(folder, {**texts, "sensitivity.json": document}, others=["sobol.svg"])


def _drawn(chart: Any) -> str:
    text = StringIO()
    chart.save(text, format="svg")
    return text.getvalue()
