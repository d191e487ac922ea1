"""What a comparison is of: the metrics that are told, and the times whose parts are told apart.

Training steps stand here; requests that are served, in `moesim.serving.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from moesim.columns import SUMMARY, Column
from moesim.results.compare_operations import OperationChange, operation_changes
from moesim.results.compare_sentence import caution
from moesim.results.compare_waterfall import STEP, Whole
from moesim.results.result import Result
from moesim.results.table import GROUPS

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


class Pair(NamedTuple):
    """A time that two results have, by part in seconds; the parts add up to it."""

    whole: Whole
    base: dict[str, float]
    other: dict[str, float]


@dataclass(frozen=True)
class Kind:
    """How results of one kind are compared: the columns of their summaries, by group, those told `first`.

    `pairs`: the times of two results whose parts are explained; `operations`: what is inside the parts, in their order,
    where the results know; `caution`: what keeps two results from being compared like with like, in sentences.
    """

    columns: Mapping[str, Column]
    groups: dict[str, tuple[str, ...]]
    first: tuple[str, ...]
    pairs: Callable[[Any, Any], list[Pair]]
    operations: Callable[[Any, Any, tuple[str, ...]], tuple[OperationChange, ...]]
    caution: Callable[[Any, Any, tuple[str, str]], str]
    explained: str


def _steps(base: Result, other: Result) -> list[Pair]:
    return [Pair(STEP, base.breakdown, other.breakdown)]


TRAINING = Kind(SUMMARY, GROUPS, FIRST, _steps, operation_changes, caution, explained="step_time")
