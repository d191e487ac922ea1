"""Measurement files, the project's own and other tools', as one normalised table.

The table has the columns of `moesim.measurement.columns` and whatever else the files hold, all in SI; `gpu` is a
catalog name, `dtype` the catalog's word; `file` and `row` say where a row comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import catalog
from moesim.calibration import foreign, names, published
from moesim.calibration.checks import check, typed
from moesim.errors import FileError, UserError, nearest_hint, shorten
from moesim.measurement import columns
from moesim.measurement.files import RawTable, read_table, suffix_of

Progress = Callable[[str, float], None]
MAX_FILES = 10_000

_DTYPES = ("dtype", "dispatch", "combine")
_SI_FORMAT = "moesim"
_PUBLISHED = "published table"


@dataclass(frozen=True)
class FileRead:
    """What became of one file: its format, the rows it gave, and the rows left out by reason."""

    name: str
    digest: str
    format: str
    rows: int
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """The normalised rows, the files they come from, and the files that were no measurements, with the reason."""

    rows: pd.DataFrame
    files: tuple[FileRead, ...]
    skipped: tuple[tuple[str, str], ...]


def read(paths: Iterable[str | os.PathLike[str]], progress: Progress | None = None) -> Tables:
    """All measurements under `paths`, files or folders; a file of a folder that holds none is told, not refused.

    Raises `UserError` (`FileError` for an unreadable file) in one line with the file, row and column.
    """
    found, skipped = _listed([Path(path) for path in paths])
    parts: list[pd.DataFrame] = []
    files: list[FileRead] = []
    for number, (path, named) in enumerate(found):
        if progress is not None:
            progress("reading", number / len(found))
        try:
            raw = read_table(path)
            how = _recognise(raw)
        except FileError as error:
            if named:
                raise
            skipped.append((path.name, str(error).removeprefix(f"{path}: ")))
            continue
        rows, told = _normalised(raw, how)
        if how == _PUBLISHED and not len(rows):
            skipped.append((path.name, f"holds no timed kernels, its rows are {'; '.join(told.left_out)}"))
            continue
        parts.append(rows)
        files.append(told)
    if progress is not None:
        progress("reading", 1.0)
    if not parts:
        why = f": {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise UserError(f"no measurement file in {', '.join(str(path) for path in paths)}{why}")
    rows = pd.concat(parts, ignore_index=True)
    absent = [name for name in columns.names() if name not in rows]
    empty = pd.DataFrame({name: _nothing(name) for name in absent}, index=rows.index)
    return Tables(pd.concat([rows, empty], axis=1), tuple(files), tuple(skipped))


def _nothing(name: str) -> Any:
    known = columns.column(name)
    return np.nan if known is not None and known.dtype in ("int64", "float64") else None


def _listed(paths: list[Path]) -> tuple[list[tuple[Path, bool]], list[tuple[str, str]]]:
    """Files to read, with whether the user named them; and a folder's other files."""
    if not paths:
        raise UserError("name at least one measurement file or folder")
    found: dict[Path, bool] = {}
    skipped = []
    for path in paths:
        if not path.is_dir():
            found[path] = True
            continue
        for inner in sorted(path.iterdir())[: MAX_FILES + 1]:
            if len(found) > MAX_FILES:
                raise UserError(f"{path}: more than {MAX_FILES:,} files, the most that are read")
            if inner.is_file() and suffix_of(inner):
                found.setdefault(inner, False)
            elif inner.is_file():
                skipped.append((inner.name, "is no CSV and no Parquet"))
    return list(found.items()), skipped


def _recognise(raw: RawTable) -> foreign.Format | str:
    """The file's format by its columns; raises `FileError` that names the nearest one and what it lacks."""
    have = {str(name) for name in raw.rows.columns}
    if have >= published.COLUMNS:
        return _PUBLISHED
    if {"kind", "time"} <= have or {"kind", "gpu"} <= have:
        return _SI_FORMAT
    for known in foreign.FORMATS:
        if have >= known.needs and not have & known.lacks:
            return known
    share, nearest = max(((len(known.needs & have) / len(known.needs), known) for known in foreign.FORMATS), key=_first)
    lack = sorted(nearest.needs - have)
    near = f"nearest: {nearest.name}, which has {', '.join(lack)} too"
    if share < 0.5 or not lack:
        others = ", ".join([*(known.name for known in foreign.FORMATS), _PUBLISHED])
        near = f"a table of our own has kind, gpu and time; the other known formats are {others}"
    raise FileError(f"{raw.path}: holds no measurements that are known by their columns; {near}")


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def _normalised(raw: RawTable, how: foreign.Format | str) -> tuple[pd.DataFrame, FileRead]:
    """The rows of one file in the project's columns."""
    if not len(raw.rows):
        raise UserError(f"{raw.path}: has column names and no rows")
    if isinstance(how, foreign.Format):
        rows = typed(raw.rows, how.texts(raw.rows), how.needs - foreign.TEXTS, raw.path)
        converted, name = foreign.convert(rows, how), how.name
    elif how == _PUBLISHED:
        rows = typed(raw.rows, published.COLUMNS - published.NUMBERS, published.NUMBERS, raw.path)
        converted, name = foreign.convert_published(rows), how
    else:
        converted, name = foreign.Converted(raw.rows), how
    left_out = dict(converted.left_out)
    rows = converted.rows
    if len(rows):
        rows = check(rows, raw.path)
        if how == _SI_FORMAT:
            rows = _with_law_names(rows)
        rows = _with_catalog_words(rows, left_out)
    rows["file"] = raw.path.name
    rows["row"] = rows.index
    return rows, FileRead(raw.path.name, raw.digest, name, len(rows), left_out)


def _with_law_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Libraries of an own table by the names of their laws."""
    if "library" not in rows:
        return rows
    exchange = rows["kind"] == "dispatch_combine"
    rows["library"] = rows["library"].map(str, na_action="ignore")  # a name may look like a number
    for which in (exchange, ~exchange & rows["library"].notna()):
        texts = rows.loc[which, "library"].astype(str)
        known = {text: names.library(text, which is exchange) for text in texts.unique()}
        rows.loc[which, "library"] = texts.map(known)
    return rows


def _with_catalog_words(rows: pd.DataFrame, left_out: dict[str, int]) -> pd.DataFrame:
    """GPUs and number formats by the catalog's names; rows of GPUs that it does not hold are left out."""
    for name in _DTYPES:
        if name in rows:
            spelled = {text: names.dtype(text) for text in rows[name].dropna().unique() if isinstance(text, str)}
            rows[name] = rows[name].map(spelled)
    known = {text: names.gpu(str(text)) for text in rows["gpu"].unique()}
    for text, found in known.items():
        if found is None:
            hint = nearest_hint(str(text).lower(), catalog.names("gpus"))
            left_out[f"gpu {shorten(str(text))!r} is not in the catalog{hint}"] = int((rows["gpu"] == text).sum())
    rows["gpu"] = rows["gpu"].map(known)
    return rows[rows["gpu"].notna()].copy()
