"""Which input moves the answer most: every input to both ends of its range, alone, and Sobol indices of all together.

One at a time (a tornado): the others stay as the scenario has them. Sobol indices: all are drawn from their ranges at
once, evenly and independently; the first-order index of an input is the share of the answer's variance that it makes
alone, the total index the share in which it has any part.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np

from moesim import roads
from moesim.errors import InfeasibleError, UserError, nearest_hint, shorten
from moesim.provenance import Quantity
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.serving.headline import COSTS, RATES, headline, is_closed
from moesim.sweeps import sobol
from moesim.sweeps.base import Source, base_of
from moesim.sweeps.calibrated import point
from moesim.sweeps.effects import Effect, End, Sensitivity
from moesim.sweeps.executors import cores
from moesim.sweeps.inputs import Input, Values
from moesim.sweeps.nouns import COLUMNS, Noun
from moesim.sweeps.run import FEW, Progress, sweep
from moesim.sweeps.sampling import drawn
from moesim.sweeps.sensitivity_inputs import inputs_of, recorded_note
from moesim.units import show

Method = Literal["tornado", "sobol"]
SAMPLES = 256
MOST_SAMPLES = 1 << 16
CONVERGED = 0.05
"""Half an interval of an index, up to which nobody has to be told."""
_NEEDS = {
    "cost": "; it needs workload.total_tokens and prices.gpu_hour",
    "cost_per_million_output_tokens": "; it needs prices.gpu_hour",
    **dict.fromkeys(
        ("goodput_fraction", "goodput_requests_per_second"), "; the closed form has none: moesim sweep simulates"
    ),
}
Row = tuple[float, str, str]
"""The metric at a point, its status, and the reason where it is not done."""


def sensitivity(
    scenario: Source,
    over: Mapping[str, Any] | None = None,
    metric: str | None = None,
    method: Method = "tornado",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Sensitivity:
    """Which input moves `metric` (a column of the summary) most, by the closed form, of training or of serving.

    Unless stated, `metric` is step_time; of serving tokens a second and GPU in a closed loop, else the time per output
    token, for open arrivals set the tokens a second.
    `over`: fields and their ranges, "200..800 Gb/s", "+-20%", two ends, or three and more values that it can have;
    None takes the field's own range. Without `over`: the uncertain and decided inputs that apply to the scenario.
    `sobol` costs `samples` (a power of two) times (inputs + 2) estimates on top of the tornado's two an input.
    Raises `UserError` where the metric or a range makes no sense, `InfeasibleError` where the scenario does not fit.
    """
    return answer(ask(scenario, over, metric, method, samples), seed, progress, workers)


@dataclass(frozen=True)
class Question:
    """What is asked, checked, with the scenario's own answer; `seconds`: what one estimate takes here."""

    scenario: AnyScenario
    inputs: tuple[Input, ...]
    metric: str
    method: Method
    samples: int
    base: Quantity
    seconds: float
    notes: tuple[str, ...]

    @property
    def estimates(self) -> int:
        """Points to estimate at most."""
        alone = 2 * len(self.inputs)
        return alone if self.method == "tornado" else alone + self.samples * (len(self.inputs) + 2)

    def cost(self, workers: int | None = None) -> str:
        """What it takes, in words, before anything runs."""
        count, several = len(self.inputs), self.estimates > FEW and workers != 0
        used = (workers or cores()) if several else 1
        parts = f"2 x {count} inputs"
        if self.method == "sobol":
            parts += f" and {self.samples:,} samples x ({count} inputs + 2)"
        left = show(self.estimates * self.seconds / used, "s")
        return f"{self.estimates:,} estimates ({parts}), about {left} on {used} process{'es' if used > 1 else ''}"


def ask(
    scenario: Source,
    over: Mapping[str, Any] | None = None,
    metric: str | None = None,
    method: Method = "tornado",
    samples: int = SAMPLES,
) -> Question:
    """Reads a question and answers it at the scenario itself. Raises as `sensitivity` does."""
    if method not in get_args(Method):
        raise UserError(f"unknown method {shorten(method)!r}; allowed: {', '.join(get_args(Method))}")
    if not 8 <= samples <= MOST_SAMPLES or samples & (samples - 1):
        raise UserError(f"samples must be a power of two from 8 to {MOST_SAMPLES:,}, got {samples}")
    loaded = scenario if isinstance(scenario, Scenario | ServingScenario) else base_of(scenario).at({})
    metric = _metric(loaded, metric)
    inputs = inputs_of(loaded, metric, over)
    if method == "sobol" and len(inputs) < 2:
        raise UserError("sobol shares the variance out among inputs: give two or more, or take method tornado")
    base = roads.estimate(loaded).summary.get(metric)
    if base is None:
        raise UserError(f"{loaded.name} has no {metric}{_NEEDS.get(metric, '')}")
    began = time.perf_counter()
    roads.estimate(loaded)
    seconds = time.perf_counter() - began
    notes = [recorded_note(loaded) if over is None else "", _pace_note(loaded, metric)]
    return Question(loaded, inputs, metric, method, samples, base, seconds, tuple(filter(None, notes)))


def _metric(scenario: AnyScenario, metric: str | None) -> str:
    """The metric asked for, or the one that a scenario is judged by."""
    noun: Noun = "serving" if isinstance(scenario, ServingScenario) else "training"
    if metric is None:
        return headline(scenario) if isinstance(scenario, ServingScenario) else "step_time"
    if metric in COLUMNS[noun]:
        return metric
    other: Noun = "training" if noun == "serving" else "serving"
    if metric in COLUMNS[other]:
        raise UserError(
            f"{metric} is told of {other}, {scenario.name} is of {noun}; {noun} has e.g. {_metric(scenario, None)}"
        )
    raise UserError(f"unknown metric {shorten(metric)!r}{nearest_hint(metric, COLUMNS[noun])}")


def _pace_note(scenario: AnyScenario, metric: str) -> str:
    """Why no hardware moves a rate that arrivals set."""
    if not isinstance(scenario, ServingScenario) or is_closed(scenario) or metric not in (*RATES, *COSTS):
        return ""
    return (
        f"arrivals set {metric} as long as the deployment keeps up: {headline(scenario)} tells what hardware moves, and"
        " so do closed arrivals, {kind: closed, concurrency: N}"
    )


def answer(
    question: Question, seed: int = 0, progress: Progress | None = None, workers: int | None = None
) -> Sensitivity:
    """Answers a question: the same numbers for the same seed, whatever number of workers."""
    with TemporaryDirectory(prefix="moesim-") as folder:
        run = _Run(question, Path(folder), progress, workers)
        effects = run.alone()
        notes = question.notes
        if question.method == "sobol":
            effects, more = run.together(effects, seed)
            notes = (*notes, *more)
    samples = question.samples if question.method == "sobol" else None
    found = Sensitivity(question.scenario.name, question.metric, question.base, _ordered(effects), samples, notes)
    return replace(found, notes=(*notes, *doubt(found)))


def doubt(found: Sensitivity) -> list[str]:
    """What a reader should know where the Sobol indices have not converged."""
    if found.samples is None or found.widest <= CONVERGED:
        return []
    more = 4 * found.samples
    mend = f"; {more:,} samples would halve that" if more <= MOST_SAMPLES else ", and more cannot be asked"
    return [f"the shares are known to ±{100 * found.widest:.0f} % only (90 % confidence){mend}"]


def _ordered(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """The strongest first: by total index where there is one, else by swing; without any answer last."""
    return tuple(
        sorted(effects, key=lambda one: (one.total is None, -(one.total.value if one.total else 0.0), -one.swing))
    )


class _Run:
    """Estimates of one question; calibration files of its own stand in `folder` as long as it runs."""

    def __init__(self, question: Question, folder: Path, progress: Progress | None, workers: int | None) -> None:
        self.question, self.folder, self.progress, self.workers = question, folder, progress, workers
        # Every name is looked up: numbers are all that varies.
        self.document = question.scenario.document()

    def alone(self) -> list[Effect]:
        """Every input at both its ends, the others as they are."""
        inputs = self.question.inputs
        rows = self._ask([self._point([one], {one.field: end}) for one in inputs for end in one.ends], "one at a time")
        ends = [End(at, *row) for at, row in zip((end for one in inputs for end in one.ends), rows, strict=True)]
        triples = zip(inputs, ends[::2], ends[1::2], strict=True)
        return [Effect(one, low, high, self.question.base.value) for one, low, high in triples]

    def together(self, effects: list[Effect], seed: int) -> tuple[list[Effect], list[str]]:
        """The effects with their Sobol indices, and what was left out of the ranges."""
        used, notes = _within(effects)
        if len(used) < 2:
            raise UserError(f"sobol needs two inputs that move and have an answer; {'; '.join(notes)}")
        samples = self.question.samples
        shares = sobol.design(len(used), samples, seed)
        points = [self._point(used, values) for values in drawn({one.field: one.kind for one in used}, shares)]
        # Points of one calibration file follow each other, so that a worker reads it once.
        order = sorted(range(len(points)), key=lambda at: str(points[at].get("cluster.calibration", "")))
        rows = self._ask([points[at] for at in order], "all together")
        _require_all(rows)
        values = np.empty(len(points))
        values[order] = [value for value, *_ in rows]
        first, total = (
            dict(zip([one.field for one in used], found, strict=True)) for found in sobol.indices(values, samples, seed)
        )
        fields = [(one, one.input.field) for one in effects]
        return [replace(one, first=first.get(field), total=total.get(field)) for one, field in fields], notes

    def _point(self, inputs: Sequence[Input], values: Values) -> Values:
        return point(self.question.scenario, [one.setting(values[one.field]) for one in inputs], self.folder)

    def _ask(self, points: list[Values], what: str) -> list[Row]:
        """What becomes of each point, by the sweeps' executors."""
        hear = self.progress
        tell = None if hear is None else lambda _, share, left: hear(what, share, left)
        table = sweep(self.document, over=points, workers=self.workers, progress=tell).arrow
        columns = [table.column(name).to_pylist() for name in (self.question.metric, "status", "reason")]
        return list(zip(*columns, strict=True))


def _within(effects: Sequence[Effect]) -> tuple[list[Input], list[str]]:
    """The inputs over what has an answer of their ranges, and what was cut off; a stated range is not cut.

    Raises `UserError` for one that has no answer at an end.
    """
    used, notes = [], []
    for effect in effects:
        kept: Input | None = effect.input
        for end in effect.ends:
            if end.status == "done" or kept is None:
                continue
            if effect.input.asked:
                raise UserError(
                    f"{effect.input.field} = {effect.input.shown(end.at)} is {end.why}; state another range"
                )
            kept = kept.without(end.at)
            notes.append(f"{effect.input.name} does not go to {effect.input.shown(end.at)}, which is {end.status}")
        used += [kept] if kept is not None else []
    return used, notes


def _require_all(rows: Sequence[Row]) -> None:
    """Raises where any point has no answer: indices of a part of the points would say nothing."""
    missing = [(status, reason) for _, status, reason in rows if status != "done"]
    if not missing:
        return
    status, reason = missing[0]
    what = f"{len(missing):,} of {len(rows):,} points have no answer, the first is {status}: {shorten(reason, 300)}"
    kind = InfeasibleError if status == "infeasible" else UserError
    raise kind(f"{what}; narrow the ranges, or take method tornado")
