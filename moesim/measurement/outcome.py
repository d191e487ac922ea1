"""What a timing run brings, how it tells where it is, and the file that it writes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.errors import UserError
from moesim.files import check_target
from moesim.measurement.columns import write


@dataclass(frozen=True)
class Skipped:
    """A case that was not timed, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """Where a run is: `done` cases of `cases`, `seconds` since its begin; the last case with its time, or why not."""

    done: int
    cases: int
    seconds: float
    label: str
    time: float | None
    reason: str = ""


Report = Callable[[Progress], None]


@dataclass
class Measured:
    """What a run brought: rows of a measurement table, what was skipped, and how it ended.

    `ended`: finished, out of time, interrupted, or device failed; `left` cases were not come to.
    """

    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    left: int = 0
    ended: str = "finished"
    path: Path | None = None

    def summary(self) -> str:
        """What there is, in a few lines."""
        lines = [f"{len(self.rows)} rows on {self.device}, {self.ended}"]
        lines += [f"{self.left} cases were not come to"] if self.left else []
        reasons: dict[str, list[str]] = {}
        for entry in self.skipped:
            reasons.setdefault(entry.reason, []).append(entry.label)
        lines += [f"skipped {len(labels)}, e.g. {labels[0]}: {reason}" for reason, labels in reasons.items()]
        return "\n".join([*lines, *([f"written to {self.path}"] if self.rows and self.path else [])])

    def save(self) -> None:
        """Write the rows to `path`, where there are any and one was named."""
        if self.rows and self.path is not None:
            write(self.rows, self.path)

    def check(self) -> None:
        """Raises UserError where a run that nobody interrupted timed nothing."""
        if self.rows or self.ended == "interrupted":
            return
        reasons = [f"{entry.label}: {entry.reason}" for entry in self.skipped[:3]] or [self.ended]
        raise UserError(f"nothing could be timed: {'; '.join(reasons)}")


def checked(output: str | os.PathLike[str]) -> Path:
    """The file to write; told before the run where it cannot be."""
    path = Path(output)
    if not path.resolve().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.resolve().parent}")
    return check_target(path, "a measurement file", (".csv", ".parquet"))


def today() -> str:
    """The day of the run, for its rows' source."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
