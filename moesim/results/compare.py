"""Results side by side: inputs that differ, every metric with difference and ratio, and what explains a step.

The frame knows no kind of result: what is told of training steps, or of serving, is a `Kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from moesim.errors import UserError
from moesim.provenance import Quantity
from moesim.results.compare_inputs import Difference, differences
from moesim.results.compare_kinds import TRAINING, Kind, Pair
from moesim.results.compare_operations import OperationChange
from moesim.results.compare_sentence import by_operation, sentence
from moesim.results.compare_waterfall import STEP, Bar, Whole, distinct, waterfall
from moesim.results.result import Result
from moesim.results.table import grouped

if TYPE_CHECKING:
    from moesim.results.compare_charts import ComparisonCharts


class Answered(Protocol):
    """What results of every kind have."""

    @property
    def name(self) -> str:
        """The scenario's name."""

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario with every default filled in."""

    @property
    def summary(self) -> dict[str, Quantity]:
        """Metric name -> Quantity."""


@dataclass(frozen=True)
class Metric:
    """One metric over all results; None where a result does not have it, or where a ratio has no meaning."""

    name: str
    unit: str
    values: tuple[Quantity | None, ...]
    differences: tuple[float | None, ...]
    ratios: tuple[float | None, ...]


@dataclass(frozen=True)
class Explanation:
    """Why one result's step differs from the first's: seconds by part, the largest difference first, and a sentence.

    `steps`: seconds of the first's step and of this one's, between which the parts lead. `bars`: that as a waterfall,
    small parts in one bar. `operations`: the same by operation inside the parts, where both results are simulated.
    `which`: the result's place; `whole`: what is explained in place of a step; `breakdowns`: both in seconds by part.
    """

    difference: float
    parts: tuple[tuple[str, float], ...]
    sentence: str
    steps: tuple[float, float]
    bars: tuple[Bar, ...]
    operations: tuple[OperationChange, ...] = ()
    which: int = 1
    whole: Whole = STEP
    breakdowns: tuple[dict[str, float], dict[str, float]] = ({}, {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "difference": self.difference,
            "parts": dict(self.parts),
            "sentence": self.sentence,
            "steps": list(self.steps),
            "bars": [bar.as_dict() for bar in self.bars],
            "operations": [row.as_dict() for row in self.operations],
        }


@dataclass(frozen=True)
class Comparison:
    """All results against the first; `explanations`: of each result after it, in their order.

    `differences`: the inputs that are not the same in all scenarios; `kind`: of what the results are.
    """

    names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    explanations: tuple[Explanation, ...]
    differences: tuple[Difference, ...]
    kind: Kind = TRAINING

    @cached_property
    def charts(self) -> ComparisonCharts:
        """Pictures of this comparison (altair): `waterfall(which)`."""
        from moesim.results.compare_charts import ComparisonCharts

        return ComparisonCharts(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "names": list(self.names),
            "differences": [one.as_dict() for one in self.differences],
            "metrics": {
                metric.name: {
                    "unit": metric.unit,
                    "values": [value.as_dict() if value else None for value in metric.values],
                    "differences": list(metric.differences),
                    "ratios": list(metric.ratios),
                }
                for metric in self.metrics
            },
            self.kind.explained: [self._explained(why) for why in self.explanations],
        }

    def _explained(self, why: Explanation) -> dict[str, Any]:
        """Training has one explanation a result, in their order; of others each says what it is of."""
        of = {} if self.kind is TRAINING else {"name": self.names[why.which], "of": why.whole.name}
        return {**of, **why.as_dict()}


def compare(results: Sequence[Result]) -> Comparison:
    """Every metric of two or more training results against the first. Raises `UserError` for fewer than two."""
    return side_by_side(results, TRAINING)


def side_by_side(results: Sequence[Answered], kind: Kind) -> Comparison:
    """Every metric of two or more results of one kind against the first. Raises `UserError` for fewer than two."""
    if len(results) < 2:
        raise UserError(f"a comparison needs at least two results, got {len(results)}")
    present = list(dict.fromkeys(name for result in results for name in result.summary))
    first = [name for name in kind.first if name in present]
    rest = [name for _, members in grouped(present, kind.groups) for name in members if name not in kind.first]
    names = distinct([result.name for result in results])
    return Comparison(
        names=names,
        metrics=tuple(_metric(name, results, kind) for name in (*first, *rest)),
        explanations=tuple(
            why for which in range(1, len(results)) for why in _explanations(results, names, which, kind)
        ),
        differences=differences([result.scenario for result in results]),
        kind=kind,
    )


def _metric(name: str, results: Sequence[Answered], kind: Kind) -> Metric:
    values = tuple(result.summary.get(name) for result in results)
    base = values[0]
    differences = tuple(value.value - base.value if value and base else None for value in values)
    ratios = tuple(value.value / base.value if value and base and base.value else None for value in values)
    units = [value.unit for value in values if value]
    unit = kind.columns[name].unit if name in kind.columns else units[0]
    return Metric(name, unit, values, differences, ratios)


def _explanations(results: Sequence[Answered], names: tuple[str, ...], which: int, kind: Kind) -> list[Explanation]:
    """Of one result; what is not alike is said once, with the first of them."""
    base, other, called = results[0], results[which], (names[0], names[which])
    found: list[Explanation] = []
    for pair in kind.pairs(base, other):
        parts = _changes(pair)
        operations = kind.operations(base, other, tuple(part for part, _ in parts))
        steps = sum(pair.base.values()), sum(pair.other.values())
        said = [sentence(called, steps, parts, pair.whole), by_operation(operations, max(steps))]
        said += [kind.caution(base, other, called)] if not found else []
        why = Explanation(
            difference=sum(change for _, change in parts),
            parts=parts,
            sentence=" ".join(filter(None, said)),
            steps=steps,
            bars=waterfall(called, steps, parts, pair.whole),
            operations=operations,
            which=which,
            whole=pair.whole,
            breakdowns=(pair.base, pair.other),
        )
        found.append(why)
    return found


def _changes(pair: Pair) -> tuple[tuple[str, float], ...]:
    """The parts add up to the whole, so their differences add up to that of the wholes."""
    names = dict.fromkeys((*pair.base, *pair.other))
    changes = {name: pair.other.get(name, 0.0) - pair.base.get(name, 0.0) for name in names}
    return tuple(sorted(changes.items(), key=lambda item: -abs(item[1])))
