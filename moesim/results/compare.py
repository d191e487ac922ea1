"""Results side by side: every metric, its difference and ratio to the first, and which part explains the step time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from moesim.columns import SUMMARY
from moesim.errors import UserError, shorten
from moesim.provenance import Quantity, worst
from moesim.results.result import Result
from moesim.results.table import grouped, metric_label, plain_table, shown
from moesim.units import show

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

_SAME = 1e-9


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
    """Why one result's step differs from the first's: seconds by part, the largest difference first, and a sentence."""

    difference: float
    parts: tuple[tuple[str, float], ...]
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """All results against the first; `explanations` has one entry for each result after it."""

    names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    explanations: tuple[Explanation, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "names": list(self.names),
            "metrics": {
                metric.name: {
                    "unit": metric.unit,
                    "values": [value.as_dict() if value else None for value in metric.values],
                    "differences": list(metric.differences),
                    "ratios": list(metric.ratios),
                }
                for metric in self.metrics
            },
            "step_time": [
                {"difference": why.difference, "parts": dict(why.parts), "sentence": why.sentence}
                for why in self.explanations
            ],
        }


def compare(results: Sequence[Result]) -> Comparison:
    """Every metric of two or more results against the first. Raises `UserError` for fewer than two."""
    if len(results) < 2:
        raise UserError(f"a comparison needs at least two results, got {len(results)}")
    present = list(dict.fromkeys(name for result in results for name in result.summary))
    first = [name for name in FIRST if name in present]
    rest = [name for _, members in grouped(present) for name in members if name not in FIRST]
    names = _distinct([result.name for result in results])
    return Comparison(
        names=names,
        metrics=tuple(_metric(name, results) for name in (*first, *rest)),
        explanations=tuple(
            _explain(results[0], other, names[0], name) for other, name in zip(results[1:], names[1:], strict=True)
        ),
    )


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where one occurs several times."""
    total, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if total[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def _metric(name: str, results: Sequence[Result]) -> Metric:
    values = tuple(result.summary.get(name) for result in results)
    base = values[0]
    differences = tuple(value.value - base.value if value and base else None for value in values)
    ratios = tuple(value.value / base.value if value and base and base.value else None for value in values)
    units = [value.unit for value in values if value]
    return Metric(name, SUMMARY[name].unit if name in SUMMARY else units[0], values, differences, ratios)


def _explain(base: Result, other: Result, base_name: str, other_name: str) -> Explanation:
    """The parts of a breakdown add up to the step, so their differences add up to the step's."""
    parts = {
        part: other.breakdown.get(part, 0.0) - base.breakdown.get(part, 0.0)
        for part in dict.fromkeys((*base.breakdown, *other.breakdown))
    }
    ordered = tuple(sorted(parts.items(), key=lambda item: -abs(item[1])))
    step, difference = sum(base.breakdown.values()), sum(parts.values())
    return Explanation(difference, ordered, _sentence(base_name, other_name, step, difference, ordered))


def _sentence(base: str, other: str, step: float, difference: float, parts: tuple[tuple[str, float], ...]) -> str:
    base, other = shorten(base), shorten(other)
    if not parts or abs(parts[0][1]) <= _SAME * step:
        return f"The steps of {other} and {base} take the same time in every part."
    if abs(difference) <= _SAME * step:
        return f"The steps of {other} and {base} take the same time; inside, {_moved(*parts[0])} differs most."
    relative = f" ({show(abs(difference) / step, 'fraction')})" if step > 0 else ""
    verdict = "longer" if difference > 0 else "shorter"
    head = f"The step of {other} is {show(abs(difference), 's')}{relative} {verdict} than that of {base}"
    driving = [(part, change) for part, change in parts if change * difference > 0]
    opposing = [(part, change) for part, change in parts if change * difference < 0]
    share = driving[0][1] / difference
    said = f"mostly by {_moved(*driving[0])}" if share > 0.5 else f"first by {_moved(*driving[0])}"
    said += f", then {_moved(*driving[1])}" if len(driving) > 1 and driving[1][1] / difference > 0.1 else ""
    said += f", against {_moved(*opposing[0])}" if opposing and -opposing[0][1] / difference > 0.1 else ""
    return f"{head}: {said}."


def _moved(part: str, change: float) -> str:
    return f"{shorten(part)} ({_signed(change)})"


def _signed(seconds: float) -> str:
    return f"{'+' if seconds >= 0 else '−'}{show(abs(seconds), 's')}"


def comparison_table(comparison: Comparison) -> Table:
    """One column a result, each after the first with its ratio to the first; least trusted basis of a row last."""
    table = plain_table("Comparison")
    table.add_column(Text(shorten(comparison.names[0], 24)), justify="right")
    for name in comparison.names[1:]:
        table.add_column(Text(shorten(name, 24)), justify="right")
        table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True, min_width=len("datasheet"))
    first = [metric for metric in comparison.metrics if metric.name in FIRST]
    for metric in first:
        table.add_row(*map(Text, _cells(metric)))
    table.add_section()
    for metric in comparison.metrics[len(first) :]:
        table.add_row(*map(Text, _cells(metric)))
    return table


def _cells(metric: Metric) -> list[str]:
    texts = [shown(value.value, metric.unit) if value else "–" for value in metric.values]
    ratios = ["–" if ratio is None else shown(ratio, "ratio") for ratio in metric.ratios]
    pairs = [text for pair in zip(texts[1:], ratios[1:], strict=True) for text in pair]
    basis = worst(value.basis for value in metric.values if value)
    return [metric_label(metric.name), texts[0], *pairs, basis]
