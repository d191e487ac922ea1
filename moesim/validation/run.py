"""Runs cases against the laws and tells the errors: by case, and by kind, GPU, model and library.

A row is one metric of one case. What cannot be predicted is a row with its reason; nothing is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moesim import catalog
from moesim.errors import UserError
from moesim.validation import cases as case_files
from moesim.validation.cases import Case
from moesim.validation.predict import Prediction, Refusal, labels, named, predict, unknown_metric
from moesim.validation.statistics import Stats, statistics
from moesim.validation.words import unit_of

Progress = Callable[[str, float], None]

SHARE_POINTS = 0.005
"""Shares (dropped tokens) are also good where they differ by no more than this: half a point."""


@dataclass(frozen=True)
class Row:
    """One metric of one case. `error` is predicted / measured - 1; `predicted` None has a `reason`; `within_range`
    says whether the measured value lies from `low` to `high`; `tolerance` is the stated one, `broken` whether the
    error is beyond it, `known` why that is expected; `unit` is that of the values in SI."""

    id: str
    kind: str
    metric: str
    measured: float | None
    predicted: float | None
    error: float | None
    low: float | None = None
    high: float | None = None
    within_range: bool | None = None
    basis: str | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    tolerance: float | None = None
    broken: bool = False
    known: str = ""
    gpu: str = ""
    model: str = ""
    library: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Validation:
    """All rows of a validation, and their tables. `limits` are (group, statistic, allowed, found) of limits stated for
    the cases of a file together."""

    cases: tuple[Row, ...]
    limits: tuple[dict[str, Any], ...] = ()

    @cached_property
    def by_kind(self) -> dict[str, Stats]:
        """Error statistics by kind, with how many rows have no prediction."""
        return self._by("kind")

    @cached_property
    def by_gpu(self) -> dict[str, Stats]:
        """The same by GPU."""
        return self._by("gpu")

    @cached_property
    def by_model(self) -> dict[str, Stats]:
        """The same by model, for the cases that name one."""
        return self._by("model")

    @cached_property
    def by_library(self) -> dict[str, Stats]:
        """The same by communication library or software stack."""
        return self._by("library")

    def _by(self, name: str) -> dict[str, Stats]:
        groups: dict[str, list[Row]] = {}
        for row in self.cases:
            if getattr(row, name):
                groups.setdefault(getattr(row, name), []).append(row)
        return {key: _stats(rows) for key, rows in sorted(groups.items())}

    @cached_property
    def coverage(self) -> float | None:
        """Share of predicted rows whose measured value lies inside the stated range."""
        known = [row.within_range for row in self.cases if row.within_range is not None]
        return sum(known) / len(known) if known else None

    @property
    def broken(self) -> tuple[str, ...]:
        """Every stated tolerance and limit that does not hold, a line each; known failures are not among them."""
        rows = [_complaint(row) for row in self.cases if row.broken and not row.known]
        return (*rows, *(_limit_complaint(limit) for limit in self.limits if limit["broken"]))

    @property
    def known_failures(self) -> tuple[str, ...]:
        """Stated tolerances that do not hold where the case says why that is known."""
        return tuple(f"{_complaint(row)} (known: {row.known})" for row in self.cases if row.broken and row.known)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the order of the files."""
        return {
            "cases": [_plain(row) for row in self.cases],
            "by_kind": self.by_kind,
            "by_gpu": self.by_gpu,
            "by_model": self.by_model,
            "by_library": self.by_library,
            "coverage": self.coverage,
            "unpredicted": sum(row.predicted is None for row in self.cases),
            "limits": list(self.limits),
            "broken": list(self.broken),
            "known_failures": list(self.known_failures),
        }


def validate(
    paths: Iterable[str | os.PathLike[str]] | None = None,
    *,
    calibration: str | os.PathLike[str] | None = None,
    simulate: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Predicts the cases of the files (None: those that come with moesim) and compares.

    `calibration`: the user's own file of coefficients, which go before the catalog's. `simulate`: training steps and
    serving by the simulation instead of the closed form. Raises `FileError` where a file cannot be read, `UserError`
    where none is given or nothing is in them.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    files = case_files.shipped() if paths is None else list(paths)
    found = case_files.read(files)
    if not found:
        raise UserError("no cases to validate: the files hold none")
    measured = str(catalog.measured(str(calibration), Path())) if calibration is not None else None
    rows: list[Row] = []
    for number, case in enumerate(found):
        if progress is not None:
            progress("validating", number / len(found))
        rows += _rows(case, predict(case, calibration=measured, simulate=simulate))
        if number + 1 == case_files.MOST_WRONG:
            _require_one(rows)
    if progress is not None:
        progress("validating", 1.0)
    return Validation(tuple(rows), tuple(_limits(found, rows)))


def _require_one(rows: list[Row]) -> None:
    """Raises `UserError` where not one of so many cases has a prediction: there is no use in going on."""
    if all(row.predicted is None for row in rows):
        raise UserError(
            f"none of the first {case_files.MOST_WRONG:,} cases is predicted; the first, {rows[0].id}: {rows[0].reason}"
        )


def _rows(case: Case, said: dict[str, Prediction] | Refusal) -> Iterator[Row]:
    """A row a metric; a case without any has one row without a metric."""
    whole = said.reason if isinstance(said, Refusal) else ""
    if not case.measured and not case.refused:
        yield _silent(case, "", None, whole)
    for metric, reason in case.refused.items():
        yield _silent(case, metric, None, reason)
    for metric, value in case.measured.items():
        if isinstance(said, Refusal):
            yield _silent(case, metric, value, whole)
        elif named(metric) not in said:
            yield _silent(case, metric, value, unknown_metric(case, metric, said))
        else:
            yield _compared(case, metric, value, said[named(metric)])


def _silent(case: Case, metric: str, value: float | None, reason: str) -> Row:
    """A row without a prediction."""
    gpu, model, library = labels(case)
    return Row(
        case.id, case.kind, metric, value, None, None, reason=reason, known=case.known, gpu=gpu, model=model,
        library=library, unit=_unit(case, metric),
    )  # fmt: skip


def _compared(case: Case, metric: str, value: float, said: Prediction) -> Row:
    gpu, model, library = labels(case)
    allowed = case.tolerance.get(metric.partition("[")[0], case.tolerance.get(""))
    return Row(
        id=case.id,
        kind=case.kind,
        metric=metric,
        measured=value,
        predicted=said.value,
        error=said.value / value - 1.0 if value > 0 else None,
        low=said.low,
        high=said.high,
        within_range=bool(said.low <= value <= said.high),
        basis=said.basis,
        notes=(*said.notes, *([case.note] if case.note else [])),
        tolerance=allowed,
        broken=allowed is not None and not _good(metric, value, said.value, allowed),
        known=case.known,
        gpu=gpu,
        model=model,
        library=library,
        unit=_unit(case, metric),
    )


def _unit(case: Case, metric: str) -> str:
    """The unit of a case's metric; a case of two scenarios is their ratio."""
    return "ratio" if case.ratio_to is not None else unit_of(metric)


def _good(metric: str, measured: float, predicted: float, allowed: float) -> bool:
    if metric.partition("[")[0].endswith("fraction") and abs(predicted - measured) <= SHARE_POINTS:
        return True
    return measured > 0 and abs(predicted / measured - 1.0) <= allowed


def _stats(rows: Iterable[Row]) -> Stats:
    rows = list(rows)
    pairs = [(row.measured, row.predicted) for row in rows if row.measured is not None and row.predicted is not None]
    found = statistics([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return {**found, "unpredicted": sum(row.predicted is None for row in rows)}


def _limits(cases: list[Case], rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Limits that a file states on all its cases of a kind together; known failures do not count."""
    stated: dict[tuple[str, str], dict[str, Any]] = {}
    members: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        if case.kind in case.limits and not case.known:
            group = (case.where.partition(",")[0], case.kind)
            stated[group] = case.limits[case.kind]
            members.setdefault(group, set()).add(case.id)
    for (file, kind), limits in stated.items():
        found = _stats(row for row in rows if row.kind == kind and row.id in members[file, kind])
        for name, allowed in limits.items():
            value = found.get(name)
            least = name in ("n", "rank_correlation")
            broken = value is None or (value < allowed if least else abs(value) > allowed)
            yield {"file": file, "kind": kind, "statistic": name, "allowed": allowed, "found": value, "broken": broken}


def _complaint(row: Row) -> str:
    if row.error is None or row.tolerance is None:
        return f"{row.id}: {row.metric}: predicted {row.predicted}, measured {row.measured}"
    return f"{row.id}: {row.metric}: off by {100 * row.error:+.1f} %, stated tolerance {100 * row.tolerance:g} %"


def _limit_complaint(limit: dict[str, Any]) -> str:
    found = "unknown" if limit["found"] is None else f"{limit['found']:.3g}"
    return f"{limit['file']}: {limit['kind']}: {limit['statistic']} is {found}, stated limit {limit['allowed']:g}"


def _plain(row: Row) -> dict[str, Any]:
    found = {**asdict(row), "notes": list(row.notes)}
    return {name: value for name, value in found.items() if value != "" or name in ("id", "kind", "metric")}
