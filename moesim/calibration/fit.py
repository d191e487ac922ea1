"""From measurement files to a calibration: every law that the rows belong to is fitted, and the rest is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.calibration import compute_fit, network_fit, own_fit
from moesim.calibration.compute_fit import Fits
from moesim.calibration.entries import compute_entry, network_entries, own_entry, source_of
from moesim.calibration.network_fit import Fitted
from moesim.calibration.serving_fit import fit_serving
from moesim.calibration.step_entries import fit_steps
from moesim.calibration.tables import FileRead, Progress, Tables, read
from moesim.calibration.writer import write
from moesim.errors import UserError, shorten
from moesim.files import target_of
from moesim.measurement.columns import names
from moesim.validation import cases

# Rows of one set of expert layers that are fitted: more change no digit that is written, and take minutes.
EXPERT_ROWS = 500
_CASE_FILES = {".yaml", ".yml", ".json"}
_FITTED_KINDS = ("gemm", "expert_gemm", "attention", "memory_bound", own_fit.LAUNCH)
# The date of a build that must come out the same on another day, in seconds since 1970.
DATE_VARIABLE = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True)
class Calibration:
    """What was fitted: `entries` by calibration name, as the file has them; `left_out` gives the laws and rows that
    have no fit, with the reason; `notes` what a reader should know; `rows` counts table rows, training steps and
    serving throughputs used; `moved` has coefficients of steps and serving that moved, with the shipped and the fitted
    value."""

    name: str
    path: Path | None
    entries: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    files: tuple[FileRead, ...]
    skipped: tuple[tuple[str, str], ...]
    rows: int = 0
    moved: dict[str, tuple[float, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "written": None if self.path is None else str(self.path),
            "rows": self.rows,
            "entries": self.entries,
            "moved": {name: {"shipped": old, "fitted": new} for name, (old, new) in self.moved.items()},
            "left_out": self.left_out,
            "notes": list(self.notes),
            "files": [vars(file) for file in self.files],
            "skipped": dict(self.skipped),
        }


@dataclass
class _Findings:
    """What is gathered on the way."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    moved: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: int = 0


def calibrate(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    name: str | None = None,
    date: str | None = None,
) -> Calibration:
    """Fits all laws that the measurements under `paths` (files or folders) belong to, and writes them to `out` (YAML).

    Case files (YAML lists, named one by one) hold measured training steps, which move the step's own coefficients.
    The file goes before the catalog in a scenario that names it as `cluster.calibration`. Rows of one GPU give compute
    coefficients of that GPU, rows of several those of each generation. `date` (ISO) is today's where None; the same
    rows and date give the same bytes. Raises `UserError` where a file is not sound or no row can be used.
    """
    target = None if out is None else target_of(out)
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    steps = [path for path in map(Path, listed) if path.suffix in _CASE_FILES and path.is_file()]
    measured = [path for path in listed if Path(path) not in steps]
    nothing = Tables(pd.DataFrame(columns=[*names(), "file"]), (), ())
    tables = read(measured, progress) if measured or not steps else nothing
    day = date or _today()
    found = _Findings()
    if steps:
        _fit_cases(steps, day, found, progress)
    _fit_network(tables, day, found, progress)
    _fit_compute(tables, day, found, progress)
    _fit_own(tables, day, found)
    _tell_rest(tables.rows, found)
    if not found.entries:
        why = "; ".join(f"{law}: {reason}" for law, reason in found.left_out.items()) or _files_left_out(tables)
        raise UserError(f"no row can be used for a calibration: {why or 'the files hold no rows'}")
    title = name or (Path(out).stem if out is not None else "calibration")
    if target is not None:
        write(target, title, found.entries, found.left_out)
    return Calibration(
        title,
        target,
        found.entries,
        found.left_out,
        tuple(found.notes),
        tables.files,
        tables.skipped,
        len(tables.rows) + found.steps,
        found.moved,
    )


def _today() -> str:
    stated = os.environ.get(DATE_VARIABLE)
    if not stated:
        return datetime.now(UTC).date().isoformat()
    try:
        return datetime.fromtimestamp(int(stated), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        told = f"the environment variable {DATE_VARIABLE} is {shorten(stated)!r}"
        raise UserError(f"{told}; it must be a whole number of seconds since 1970") from error


def _files_left_out(tables: Tables) -> str:
    reasons: dict[str, int] = {}
    for file in tables.files:
        for reason, count in file.left_out.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return "; ".join(f"{count} rows: {reason}" for reason, count in reasons.items())


def _fit_cases(paths: list[Path], day: str, found: _Findings, progress: Progress | None) -> None:
    """Training steps and serving throughputs, by what the case files hold."""
    listed = cases.read(paths)
    serving = [case for case in listed if case.kind == "serving"]
    others = [case for case in listed if case.kind != "serving"]
    _say(progress, "fitting training steps", 0.0)
    if others or not serving:
        made = fit_steps(others, day)
        found.entries |= made.entries
        found.left_out |= made.left_out
        found.notes += made.notes
        found.moved, found.steps = made.moved, made.used
    if serving:
        _say(progress, "fitting serving stacks", 0.5)
        served = fit_serving(serving, day)
        found.entries |= served.entries
        found.left_out |= served.left_out
        found.moved |= served.moved
        found.steps += served.used
    _say(progress, "fitting cases", 1.0)


def _say(progress: Progress | None, what: str, share: float) -> None:
    if progress is not None:
        progress(what, share)


def _fit_network(tables: Tables, day: str, found: _Findings, progress: Progress | None) -> None:
    """Every network law with rows of its own."""
    for number, law in enumerate(network_fit.LAWS):
        if progress is not None:
            progress("network laws", number / len(network_fit.LAWS))
        rows = tables.rows[law.takes(tables.rows)]
        if not len(rows):
            continue
        made = network_fit.fit(law, rows)
        if isinstance(made, str):
            found.left_out[f"network-{law.law}"] = made
            continue
        found.entries |= network_entries(made, source_of(rows, tables.files, day))
        found.notes += _network_notes(made)
    if progress is not None:
        progress("network laws", 1.0)


def _network_notes(made: Fitted) -> list[str]:
    gpus = sorted(made.rows["gpu"].unique())
    told = [f"network-{made.law}: rows of {', '.join(gpus)} fitted together"] if len(gpus) > 1 else []
    kept = [".".join(name[1:]) for name in made.kept]
    return told + ([_as_shipped(f"network-{made.law}", kept)] if kept else [])


def _as_shipped(what: str, kept: Iterable[str]) -> str:
    return f"{what}: as shipped, for the rows do not tell: {', '.join(kept)}"


def _fit_compute(tables: Tables, day: str, found: _Findings, progress: Progress | None) -> None:
    """Dense products and expert layers: by GPU where there is one, else by generation."""
    for number, kind in enumerate(("gemm", "expert_gemm")):
        if progress is not None:
            progress("compute laws", number / 2)
        rows = tables.rows[tables.rows["kind"] == kind]
        if not len(rows):
            continue
        by = "gpu" if rows["gpu"].nunique() == 1 else "generation"
        fits = _compute_fits(kind, rows, by)
        for reason, count in fits.skipped.items():
            found.notes.append(f"{count} {kind} rows left out: {reason}")
        if not fits.sets:
            found.left_out[kind] = "; ".join(fits.skipped) or "no set of rows is large enough"
            continue
        source = source_of(rows, tables.files, day)
        for calibration, entry in compute_fit.entries(fits.sets).items():
            mine = [made for made in fits.sets if made.calibration == calibration]
            found.notes += [
                _as_shipped(f"{calibration} {made.key} {made.dtype}", made.kept) for made in mine if made.kept
            ]
            found.entries[calibration] = compute_entry(entry, mine, rows, source)
    if progress is not None:
        progress("compute laws", 1.0)


def _compute_fits(kind: str, rows: pd.DataFrame, by: str) -> Fits:
    if kind == "gemm":
        return compute_fit.fit_gemm(rows, by)
    return compute_fit.fit_experts(rows, by, EXPERT_ROWS)


def _fit_own(tables: Tables, day: str, found: _Findings) -> None:
    """Attention, memory-bound passes and launches, always by GPU."""
    for kinds, fit in (
        (("attention",), own_fit.fit_attention),
        (("memory_bound", own_fit.LAUNCH), own_fit.fit_passes),
    ):
        rows = tables.rows[tables.rows["kind"].isin(kinds)]
        if not len(rows):
            continue
        sets, left_out = fit(rows)
        found.notes += [
            _as_shipped(" ".join(filter(None, [made.calibration, made.key, made.dtype, made.what])), made.kept)
            for made in sets
            if made.kept
        ]
        found.left_out |= left_out
        source = source_of(rows, tables.files, day)
        for calibration, entry in own_fit.own_entries(sets).items():
            found.entries[calibration] = own_entry(entry, sets, rows, source)


def _tell_rest(rows: pd.DataFrame, found: _Findings) -> None:
    """Rows that belong to no law, by what they are."""
    rest = ~rows["kind"].isin(_FITTED_KINDS)
    for law in network_fit.LAWS:
        rest &= ~law.takes(rows)
    words = [name for name in ("kind", "library", "collective", "what") if name in rows]
    for key, same in rows[rest].groupby(words, dropna=False, sort=True):
        what = " ".join(str(word) for word in key if isinstance(word, str))
        found.left_out[what] = f"{len(same)} rows, which no law of a calibration takes"


__all__ = ["Calibration", "calibrate"]
