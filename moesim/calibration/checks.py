"""What must hold of a table in the project's own columns: known words, whole and positive numbers, times in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.errors import UserError, nearest_hint, shorten
from moesim.measurement.columns import COLUMNS, COMMON, column

SHORTEST, LONGEST = 1e-9, 1000.0

# Columns that a kind may leave empty, with what then holds where that is not "nothing".
OPTIONAL: dict[str, dict[str, Any]] = {
    "gemm": {"kernel": ""},
    "expert_gemm": {"expert_parallel": 1, "expert_tensor": 1, "load": "balanced", "kernel": "", "rows": None},
    "attention": {"kv_heads": None, "value_dim": None, "causal": True, "direction": "forward"},
    "memory_bound": {},
    "launch": {},
    "collective": {"ranks_per_domain": None, "nic": None, "library": "nccl", "imbalance": 1.0},
    "all_to_all": {"ranks_per_domain": None, "nic": None, "library": "nccl", "imbalance": 1.0, "collective": None},
    "dispatch_combine": {
        "ranks_per_domain": None,
        "nic": None,
        "sms": None,
        "dispatch": "fp8-block",
        "combine": "bf16",
        "groups": None,
        "top_groups": None,
    },
}
_WORDS: dict[str, tuple[str, ...]] = {
    "direction": ("dispatch", "combine", "prepare", "forward", "backward"),
    "collective": (
        "all-gather",
        "reduce-scatter",
        "all-reduce",
        "all-to-all",
        "all-to-all-unequal",
        "point-to-point",
    ),
}
_SAME_AS = {"kv_heads": "heads", "value_dim": "head_dim", "ranks_per_domain": "ranks"}


def check(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`rows` with numbers as numbers and empty optional columns filled; the index is the row's number in the file.

    Raises `UserError`: one line with the file, the row, the column, what it holds and what is allowed.
    """
    rows = rows.copy()
    for name in COMMON:
        if name not in rows and name in ("kind", "gpu", "time"):
            raise UserError(f"{path}: column {name!r} is missing{_have(rows)}")
    unknown = rows[~rows["kind"].isin(COLUMNS)]
    if len(unknown):
        at, kind = unknown.index[0], unknown["kind"].iloc[0]
        raise UserError(f"{path}: row {at}, column 'kind': {shorten(kind)}{nearest_hint(str(kind), COLUMNS)}")
    _times(rows, path)
    for kind in sorted(rows["kind"].unique()):
        rows = _of_kind(rows, str(kind), path)
    return rows


def _have(rows: pd.DataFrame) -> str:
    return f"; the file has {', '.join(shorten(str(name), 30) for name in rows.columns[:12])}"


def _times(rows: pd.DataFrame, path: Path) -> None:
    """Refuses times that are no times, or in another unit."""
    rows["time"] = _numbers(rows["time"], "time", path)
    seconds = rows["time"]
    if not len(rows):
        raise UserError(f"{path}: has no rows")
    _refuse(rows, seconds.isna(), path, "time", "every row needs a time in seconds")
    _refuse(rows, ~(seconds > 0), path, "time", "a time is above 0 seconds")
    wrong = (seconds < SHORTEST) | (seconds > LONGEST)
    _refuse(rows, wrong, path, "time", "one operation takes from 1 ns to 1,000 s, and times are in seconds")
    if "spread" in rows:
        rows["spread"] = _numbers(rows["spread"], "spread", path)
        _refuse(rows, rows["spread"] < 0, path, "spread", "a spread is at least 0")


def _of_kind(rows: pd.DataFrame, kind: str, path: Path) -> pd.DataFrame:
    """Checks and fills the columns of one kind's rows."""
    mine = rows["kind"] == kind
    for name, known in COLUMNS[kind].items():
        optional = name in OPTIONAL[kind]
        if name not in rows:
            if not optional:
                raise UserError(f"{path}: column {name!r} is missing, rows of kind {kind} need it{_have(rows)}")
            rows[name] = np.nan if known.dtype in ("int64", "float64") else None
        if known.dtype in ("int64", "float64"):
            rows[name] = _numbers(rows[name], name, path)
            _refuse(rows, mine & (rows[name] <= 0), path, name, "it must be above 0")
        if known.dtype == "int64":
            odd = mine & rows[name].notna() & (rows[name] % 1 != 0)
            _refuse(rows, odd, path, name, "it must be a whole number")
        empty = mine & rows[name].isna()
        if not optional:
            _refuse(rows, empty, path, name, f"rows of kind {kind} need it")
        rows = _filled(rows, name, empty, OPTIONAL[kind].get(name))
        _words(rows[mine], name, path)
    if kind == "expert_gemm":
        _expert_rows(rows[mine], path)
    return rows


def _filled(rows: pd.DataFrame, name: str, empty: pd.Series, value: Any) -> pd.DataFrame:
    if not empty.any():
        return rows
    if name in _SAME_AS:
        rows.loc[empty, name] = rows.loc[empty, _SAME_AS[name]]
    elif value is not None:
        if isinstance(value, (str, bool)):
            rows[name] = rows[name].astype(object)
        rows.loc[empty, name] = value
    return rows


def _words(rows: pd.DataFrame, name: str, path: Path) -> None:
    if name not in _WORDS:
        return
    wrong = rows[rows[name].notna() & ~rows[name].isin(_WORDS[name])]
    if len(wrong):
        what = wrong[name].iloc[0]
        hint = nearest_hint(str(what), _WORDS[name])
        raise UserError(f"{path}: row {wrong.index[0]}, column {name!r}: {shorten(what)}{hint}")


def _expert_rows(rows: pd.DataFrame, path: Path) -> None:
    """Checks the JSON lists of rows of each local expert."""
    for at, text in rows["rows"].dropna().items():
        try:
            counts = json.loads(str(text))
        except ValueError:
            counts = None
        sound = isinstance(counts, list) and counts and all(type(n) in (int, float) and n >= 0 for n in counts)
        if not sound:
            raise UserError(f"{path}: row {at}, column 'rows': {shorten(text)}; it must be a JSON list of counts")


def typed(rows: pd.DataFrame, texts: Iterable[str], numbers: Iterable[str], path: Path) -> pd.DataFrame:
    """`rows` with these columns as text ("" where empty) and those as numbers; `UserError` for one that is none."""
    rows = rows.copy()
    for name in texts:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").map(str)
    for name in numbers:
        rows[name] = _numbers(rows[name], name, path)
    return rows


def _numbers(values: pd.Series, name: str, path: Path) -> pd.Series:
    """The column as floats; text that is no number is refused."""
    if pd.api.types.is_bool_dtype(values):
        raise UserError(f"{path}: column {name!r} holds true and false, expected numbers")
    try:
        numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    except (OverflowError, TypeError, ValueError):  # a whole number beyond any float, a date, a list
        numbers = pd.to_numeric(values.map(str, na_action="ignore"), errors="coerce").astype(np.float64)
    odd = (numbers.isna() & values.notna() & (values.astype(str).str.strip() != "")) | np.isinf(numbers)
    if odd.any():
        unit = getattr(column(name), "unit", "")
        allowed = f"a number in {unit}" if unit else "a number"
        at = int(odd.to_numpy().argmax())
        held = shorten(values.iloc[at])
        raise UserError(f"{path}: row {values.index[at]}, column {name!r}: {held}; expected {allowed}")
    return numbers


def _refuse(rows: pd.DataFrame, wrong: pd.Series, path: Path, name: str, why: str) -> None:
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        held = rows[name].iloc[at]
        told = "empty" if pd.isna(held) else f"{held:g}" if isinstance(held, float) else shorten(held)
        raise UserError(f"{path}: row {rows.index[at]}, column {name!r}: {told}; {why}")
