"""Why one step, or iteration, is longer than another: verdict, parts behind it, operations, what is not alike."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.errors import shorten
from moesim.results.compare_operations import HIDDEN, LESS_COLLECTIVES, OperationChange
from moesim.results.compare_waterfall import SAME, STEP, Whole, middle_cut
from moesim.results.result import Result
from moesim.units import show

_WORTH_SAYING = 0.1
NAME = 60
Parts = tuple[tuple[str, float], ...]


def sentence(names: tuple[str, str], steps: tuple[float, float], parts: Parts, whole: Whole = STEP) -> str:
    """Which step (or other `whole`) is longer, and the `parts` that make it so: the most changed first, they add up."""
    (base, other), step = (middle_cut(name, NAME) for name in names), steps[0]
    difference = sum(change for _, change in parts)
    if not parts or abs(parts[0][1]) <= SAME * step:
        return f"The {whole.several} of {other} and {base} take the same time in every part."
    if abs(difference) <= SAME * step:
        return (
            f"The {whole.several} of {other} and {base} take the same time; inside, {_moved(*parts[0])} differs most."
        )
    relative = f" ({show(abs(difference) / step, 'fraction')})" if step > 0 else ""
    verdict = "longer" if difference > 0 else "shorter"
    head = f"The {whole.name} of {other} is {show(abs(difference), 's')}{relative} {verdict} than that of {base}"
    driving = [(part, change) for part, change in parts if change * difference > 0]
    opposing = [(part, change) for part, change in parts if change * difference < 0]
    share = driving[0][1] / difference
    said = f"mostly by {_moved(*driving[0])}" if share > 0.5 else f"first by {_moved(*driving[0])}"
    more = len(driving) > 1 and driving[1][1] / difference > _WORTH_SAYING
    said += f", then {_moved(*driving[1])}" if more else ""
    against = opposing and -opposing[0][1] / difference > _WORTH_SAYING
    said += f", against {_moved(*opposing[0])}" if against else ""
    return f"{head}: {said}."


def by_operation(operations: Sequence[OperationChange], step: float) -> str:
    """The operations that changed most; nothing where none did."""
    told = [row for row in operations if row.operation != row.part and not row.operation.endswith(LESS_COLLECTIVES)]
    ordered = sorted((row for row in told if abs(row.change) > SAME * step), key=lambda row: -abs(row.change))
    if not ordered:
        return ""
    second = [row for row in ordered[1:2] if abs(row.change) > _WORTH_SAYING * abs(ordered[0].change)]
    said = ", then ".join(_operation(row) for row in [ordered[0], *second])
    return f"By operation, most changed: {said}."


def _operation(row: OperationChange) -> str:
    """What is hidden is told by how much of it, not by what that does to the step."""
    if not row.operation.endswith(HIDDEN):
        return _moved(row.operation, row.change)
    return f"{row.operation} ({show(abs(row.change), 's')} {'less' if row.change > 0 else 'more'})"


def caution(base: Result, other: Result, names: tuple[str, str]) -> str:
    """What keeps two steps from being compared like with like, and what would tell more; nothing where all is well."""
    said = []
    trained = [tokens_of_step(result) for result in (base, other)]
    if all(trained) and abs(trained[1] / trained[0] - 1) > 1e-6:
        ratio, (first, second) = f"{trained[1] / trained[0]:.3g}", (middle_cut(name, NAME) for name in names)
        said.append(f"A step of {second} trains {ratio} times the tokens of one of {first}.")
    if base.road != other.road:
        said.append("One is simulated and one estimated, so the roads differ too; simulate both to see operations.")
    elif base.road == "estimate" and base.breakdown != other.breakdown:
        said.append("Estimates hold parts only; simulate both to see operations.")
    return " ".join(said)


def tokens_of_step(result: Result) -> float:
    """Tokens that a step trains; 0 where the result does not say."""
    step, rate = result.summary.get("step_time"), result.summary.get("tokens_per_second")
    return step.value * rate.value if step and rate else 0.0


def _moved(part: str, change: float) -> str:
    return f"{shorten(part)} ({'+' if change >= 0 else '−'}{show(abs(change), 's')})"
