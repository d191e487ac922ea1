"""What the laws say of a timing run before anybody runs it: a table to write down first and to measure against then."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moesim import catalog
from moesim.errors import UserError
from moesim.files import check_target, write_whole
from moesim.measurement.columns import names
from moesim.measurement.plan import Case
from moesim.validation import cases
from moesim.validation.ops import read_op
from moesim.validation.predict import Refusal, predict

Progress = Callable[[str, float], None]

ANSWER = ("predicted", "low", "high", "basis", "notes")
"""Columns beside those that describe a case: seconds with their 90 % range, what they rest on, and what to mind."""


@dataclass(frozen=True)
class Foretold:
    """The predicted cases of a timing run on one GPU (`rows`), and those without a prediction, with the reason."""

    gpu: str
    rows: tuple[dict[str, Any], ...]
    silent: tuple[tuple[str, str], ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the table as CSV, the whole file or none; raises `FileError` where it cannot be written."""
        target = check_table(path)
        order = [name for name in names() if any(name in row for row in self.rows)]
        text = io.StringIO()
        pd.DataFrame(list(self.rows)).to_csv(text, columns=[*order, *ANSWER], index=False, float_format="%.6g")
        write_whole(path, text.getvalue().encode())
        return target


def check_table(path: str | os.PathLike[str]) -> Path:
    """The table to write; raises `UserError` or `FileError` where it could not be, before anything is predicted."""
    return check_target(path, "a table of predictions", (".csv",))


def foretell(
    gpu: str,
    plan: Sequence[Case],
    *,
    calibration: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Foretold:
    """Predicts the time of each case of a `plan` on `gpu`, a catalog name.

    `calibration`: a user's own file of coefficients, which go before the catalog's. Raises `UnknownNameError` where
    the catalog has no such GPU, `UserError` where nothing is predicted.
    """
    known = catalog.load("gpus", gpu).name
    own = str(catalog.measured(str(calibration), Path())) if calibration is not None else None
    rows, silent = [], []
    for number, case in enumerate(plan):
        if progress is not None:
            progress("predicting", number / len(plan))
        asked = cases.Case(case.label, case.kind, case.label, {}, read_op(case.kind, {"gpu": known, **case.op}))
        said = predict(asked, calibration=own)
        if isinstance(said, Refusal):
            silent.append((case.label, said.reason))
            continue
        time = said["time"]
        answer = (time.value, time.low, time.high, str(time.basis), "; ".join(time.notes))
        rows.append({"kind": case.kind, "gpu": known, **case.op, **dict(zip(ANSWER, answer, strict=True))})
    if not rows:
        raise UserError(f"nothing of this is predicted: {silent[0][1] if silent else 'no case was named'}")
    return Foretold(known, tuple(rows), tuple(silent))
