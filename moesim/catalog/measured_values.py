"""What a user's own calibration may hold: values of the kind that the shipped entry has in the same place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moesim.errors import FileError, shorten

# Told about a fit, of no effect on an answer but its range.
_FREE = {"source", "rows", "noise", "left_out", "files", "range", "standard_error", "kept", "residual_by", "releases"}
# Shares and rates, by which work is divided; any other number may be 0: a term that is not there.
_DIVIDES = {"compute", "memory", "quantize", "forward", "backward", "eta", "eta_up", "eta_out", "rate", "copy_rate"}
# By these names a compute law keeps its sets of numbers: GPU or generation, then format (and pass).
_SETS = ("coefficients", "families")


def check_values(shipped: Any, own: Any, where: str) -> None:
    """Raises `FileError` naming the place in `own`, which goes over `shipped`, whose value no law can take.

    Numbers stay finite numbers, not negative where the shipped one is not, above 0 where work is divided by them;
    mappings stay mappings, text stays text.
    """
    if isinstance(shipped, Mapping):
        if not isinstance(own, Mapping):
            raise FileError(f"{where}: expected a mapping of keys, got {shorten(own)}")
        for key, value in own.items():
            _check_key(shipped, str(key), value, f"{where}.{key}")
        return
    _check_value(shipped, own, where)


def _check_key(shipped: Mapping[str, Any], key: str, value: Any, where: str) -> None:
    if key in _FREE:
        return
    if key in _SETS and isinstance(shipped.get(key, {}), Mapping):
        _check_sets(shipped, value, where, 1 if key == "families" else 0)
    elif key in shipped:
        check_values(shipped[key], value, where)
    elif isinstance(value, Mapping):
        check_values({}, value, where)
    else:
        _check_unknown(value, where)


def _check_sets(shipped: Mapping[str, Any], own: Any, where: str, above: int) -> None:
    """Sets of numbers of GPUs that the shipped entry may not have: each like the datasheet's set of its format."""
    if not isinstance(own, Mapping):
        raise FileError(f"{where}: expected a mapping of keys, got {shorten(own)}")
    for key, inner in own.items():
        place = f"{where}.{key}"
        if above:
            _check_sets(shipped, inner, place, above - 1)
            continue
        if not isinstance(inner, Mapping):
            raise FileError(f"{place}: expected a mapping of formats, got {shorten(inner)}")
        sheets = shipped.get("datasheet", {})
        for dtype, numbers in inner.items():
            sheet = sheets.get(dtype, sheets.get("bf16", {}))
            check_values(sheet, numbers, f"{place}.{dtype}")
            _check_whole(shipped, str(key), str(dtype), numbers, f"{place}.{dtype}")


def _check_whole(shipped: Mapping[str, Any], key: str, dtype: str, numbers: Any, where: str) -> None:
    """Raises `FileError` for a set without a number that the law needs and no shipped set lends."""
    if key in shipped.get("coefficients", {}) and dtype in shipped["coefficients"][key]:
        return
    example = next((inner for sets in shipped.get("coefficients", {}).values() for inner in sets.values()), None)
    if example is None:
        return
    sheets = shipped.get("datasheet", {})
    needed = {name for name, value in sheets.get(dtype, sheets.get("bf16", {})).items() if _number(value)}
    needed |= {"compute"} & set(example)
    needed -= {"fullest"}
    for name in sorted(needed):
        if name not in numbers:
            raise FileError(f"{where}.{name}: is required, a number above 0")


def _check_unknown(value: Any, where: str) -> None:
    """A number that the shipped entry has no example of: a share, a time or a count, so finite and not negative."""
    if where.endswith(".bias"):  # a miss to either side
        return
    if _number(value) and not (math.isfinite(value) and value >= 0):
        raise FileError(f"{where}: expected a finite number of at least 0, got {shorten(value)}")
    if where.rsplit(".", 1)[-1] == "compute" and not (_number(value) and value > 0):
        raise FileError(f"{where}: expected a number above 0, got {shorten(value)}")


def _check_value(shipped: Any, own: Any, where: str) -> None:
    if _number(shipped) and not where.endswith(".bias"):
        if not _number(own) or not math.isfinite(own):
            raise FileError(f"{where}: expected a finite number, got {shorten(own)}")
        if shipped > 0 and own == 0 and _DIVIDES & set(where.split(".")):
            raise FileError(f"{where}: must be above 0, got {shorten(own)}")
        if shipped >= 0 and own < 0:
            raise FileError(f"{where}: must be at least 0, got {shorten(own)}")
    elif isinstance(shipped, bool) != isinstance(own, bool) or (isinstance(shipped, str) and not isinstance(own, str)):
        raise FileError(f"{where}: expected {type(shipped).__name__}, got {shorten(own)}")
    elif isinstance(shipped, list) and not isinstance(own, list):
        raise FileError(f"{where}: expected a list, got {shorten(own)}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
