"""Results side by side: inputs that differ, every metric with difference and ratio, and what explains the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moesim.columns import SUMMARY
from moesim.errors import UserError
from moesim.provenance import Quantity
from moesim.results.compare_inputs import Difference, differences
from moesim.results.compare_operations import OperationChange, operation_changes
from moesim.results.compare_sentence import by_operation, caution, sentence
from moesim.results.compare_waterfall import Bar, distinct, waterfall
from moesim.results.result import Result
from moesim.results.table import grouped

if TYPE_CHECKING:
    from moesim.results.compare_charts import ComparisonCharts

FIRST = (
    "total_parameters",
    "active_parameters",
    "flops_per_token",
    "memory_per_gpu",
    "fits_in_memory",
    "communication_time",
    "exposed_communication_time",
    "step_time",
)
"""What tells different models apart comes before everything else."""


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
    """

    difference: float
    parts: tuple[tuple[str, float], ...]
    sentence: str
    steps: tuple[float, float]
    bars: tuple[Bar, ...]
    operations: tuple[OperationChange, ...] = ()

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
    """All results against the first; `explanations` has one entry for each result after it.

    `differences`: the inputs that are not the same in all scenarios. `breakdowns`: seconds of each step by part.
    """

    names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    explanations: tuple[Explanation, ...]
    differences: tuple[Difference, ...]
    breakdowns: tuple[dict[str, float], ...]

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
            "step_time": [why.as_dict() for why in self.explanations],
        }


def compare(results: Sequence[Result]) -> Comparison:
    """Every metric of two or more results against the first. Raises `UserError` for fewer than two."""
    if len(results) < 2:
        raise UserError(f"a comparison needs at least two results, got {len(results)}")
    present = list(dict.fromkeys(name for result in results for name in result.summary))
    first = [name for name in FIRST if name in present]
    rest = [name for _, members in grouped(present) for name in members if name not in FIRST]
    names = distinct([result.name for result in results])
    return Comparison(
        names=names,
        metrics=tuple(_metric(name, results) for name in (*first, *rest)),
        explanations=tuple(
            _explain(results[0], other, (names[0], name)) for other, name in zip(results[1:], names[1:], strict=True)
        ),
        differences=differences([result.scenario for result in results]),
        breakdowns=tuple(result.breakdown for result in results),
    )


def _metric(name: str, results: Sequence[Result]) -> Metric:
    values = tuple(result.summary.get(name) for result in results)
    base = values[0]
    differences = tuple(value.value - base.value if value and base else None for value in values)
    ratios = tuple(value.value / base.value if value and base and base.value else None for value in values)
    units = [value.unit for value in values if value]
    return Metric(name, SUMMARY[name].unit if name in SUMMARY else units[0], values, differences, ratios)


def _explain(base: Result, other: Result, names: tuple[str, str]) -> Explanation:
    """The parts of a breakdown add up to the step, so their differences add up to the step's."""
    changes = {
        part: other.breakdown.get(part, 0.0) - base.breakdown.get(part, 0.0)
        for part in dict.fromkeys((*base.breakdown, *other.breakdown))
    }
    parts = tuple(sorted(changes.items(), key=lambda item: -abs(item[1])))
    steps = sum(base.breakdown.values()), sum(other.breakdown.values())
    operations = operation_changes(base, other, tuple(part for part, _ in parts))
    said = (sentence(names, steps, parts), by_operation(operations, max(steps)), caution(base, other, names))
    return Explanation(
        difference=sum(changes.values()),
        parts=parts,
        sentence=" ".join(filter(None, said)),
        steps=steps,
        bars=waterfall(names, steps, parts),
        operations=operations,
    )
