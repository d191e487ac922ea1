"""What a user's own calibration may hold: values of the kind that the shipped entry has in the same place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from moesim.errors import FileError, nearest_hint, shorten
from moesim.provenance import Basis

# Told about a fit, of no effect on an answer.
_FREE = {"rows", "noise", "left_out", "files", "kept", "residual_by", "where", "why", "note", "date", "release"}
# Names with a number each, by which a range grows or a time is multiplied.
_NUMBERS_BY_NAME = {"standard_error", "releases"}
# Shares and rates, by which work is divided; any other number may be 0: a term that is not there.
_DIVIDES = {
    *("compute", "memory", "quantize", "forward", "backward", "eta", "eta_up", "eta_out", "rate", "copy_rate"),
    *("gemm_efficiency", "attention_scores", "gemm_rule", "gemm_rule_training", "gemm_rule_limit", "memory_efficiency"),
    *("rate_against_bf16", "bf16_tflops", "watts", "limit", "grouped_gemm", "watts_per_teraflop", "inter_memory"),
    *("top_k", "ring", "fabric_free_domains", "rate_fabric", "time_factor", "exponent", "alpha_combine_rate"),
}
# A number so many times the shipped one, or so small a part of one that divides, is a slip of the hand and overflows.
_MOST_TIMES, _LEAST_PART, _LEAST_EXPONENT, _LARGEST = 1e12, 1e-6, 1e-3, 1e18
# By these names a compute law keeps its sets of numbers: GPU or generation, then format (and pass).
_SETS = ("coefficients", "families")
_OWN_KEYS = 4


def check_values(shipped: Any, own: Any, where: str, entry: Any = None) -> None:
    """Raises `FileError` naming the place in `own`, which goes over `shipped`, whose value no law can take.

    Numbers stay finite numbers, not negative where the shipped one is not, above 0 where work is divided by them;
    mappings stay mappings, ranges ranges, lists lists of the same, and a name one that the whole shipped `entry`
    (`shipped` itself unless given) has somewhere.
    """
    entry = shipped if entry is None else entry
    if isinstance(shipped, Mapping):
        if not isinstance(own, Mapping):
            raise FileError(f"{where}: expected a mapping of keys, got {shorten(own)}")
        numbers = bool(shipped) and all(map(_number, shipped.values()))
        for key, value in own.items():
            if not isinstance(key, str) and key not in shipped:
                raise FileError(f"{where}: the key {shorten(key)} is not text; put it in quotes")
            if numbers and key not in shipped and key not in _FREE and _example(entry, key) is None:
                _check_value(1.0, value, f"{where}.{key}", None)
            else:
                _check_key(shipped, str(key), value, f"{where}.{key}", entry)
    elif isinstance(shipped, list):
        _check_list(shipped, own, where, entry)
    else:
        _check_value(shipped, own, where, entry)


def _check_key(shipped: Mapping[str, Any], key: str, value: Any, where: str, entry: Any) -> None:
    if key in _FREE:
        return
    example = shipped.get(key, _example(entry, key))
    if key == "source":
        _check_source(value, where)
    elif key in _NUMBERS_BY_NAME:
        _check_numbers(value, where)
    elif key == "range":
        _check_range(value, where)
    elif key == "own":
        _check_steps(value, where, _OWN_KEYS)
    elif key in _SETS and isinstance(shipped.get(key, {}), Mapping):
        _check_sets(shipped, value, where, 1 if key == "families" else 0)
    elif example is not None:
        check_values(example, value, where, entry)
    elif isinstance(value, Mapping):
        check_values({}, value, where, entry)
    else:
        _check_unknown(value, where)


def _example(entry: Any, key: str) -> Any:
    """What stands under a key anywhere in the shipped entry; None where nothing does."""
    if not isinstance(entry, Mapping):
        return None
    if key in entry:
        return entry[key]
    return next((found for inner in entry.values() if (found := _example(inner, key)) is not None), None)


def _check_source(value: Any, where: str) -> None:
    """A source says how well a number is known."""
    if not isinstance(value, Mapping):
        raise FileError(f"{where}: expected a mapping of keys, got {shorten(value)}")
    known = get_args(Basis)
    if value.get("basis", known[0]) not in known:
        raise FileError(f"{where}.basis: {shorten(value['basis'])}{nearest_hint(str(value['basis']), known)}")


def _check_numbers(value: Any, where: str) -> None:
    """A number by name."""
    if not isinstance(value, Mapping):
        raise FileError(f"{where}: expected a mapping of keys, got {shorten(value)}")
    for name, number in value.items():
        _check_spread(number, f"{where}.{name}")


def _check_range(value: Any, where: str) -> None:
    """How far off steps or rows are is a number; elsewhere a range tells what rows there were."""
    if {"residual", "residual_elsewhere", "residual_releases"} & set(_keys(where)):
        _check_spread(value, where)


def _check_spread(value: Any, where: str) -> None:
    if not (_finite(value) and 0 <= value <= _LARGEST):
        raise FileError(f"{where}: expected a finite number of at least 0, got {shorten(value)}")


def _check_steps(value: Any, where: str, depth: int) -> None:
    """Steps that were measured, by GPU, format, stack and make of layers: how far off they are."""
    if not isinstance(value, Mapping):
        raise FileError(f"{where}: expected a mapping of keys, got {shorten(value)}")
    if depth:
        for key, inner in value.items():
            _check_steps(inner, f"{where}.{key}", depth - 1)
    elif value:
        _check_spread(value.get("range"), f"{where}.range")


def _keys(where: str) -> list[str]:
    """The keys of a place "FILE: ENTRY.KEY.KEY", its entry apart."""
    return where.rpartition(": ")[2].split(".")[1:]


def _check_list(shipped: list[Any], own: Any, where: str, entry: Any) -> None:
    if not isinstance(own, list):
        raise FileError(f"{where}: expected a list, got {shorten(own)}")
    pair = len(shipped) == 2 and all(map(_number, shipped)) and not where.endswith("]")
    if pair and not (len(own) == 2 and all(map(_finite, own)) and own[0] <= own[1]):
        raise FileError(f"{where}: expected a range, two numbers of which the second is not below the first")
    for place, value in enumerate(own):
        example = shipped[min(place, len(shipped) - 1)] if shipped else None
        if not (isinstance(value, str) and isinstance(example, str)) and value != example:
            check_values(example, value, f"{where}[{place}]", entry)


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
            check_values(sheet, numbers, f"{place}.{dtype}", shipped)
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
    if _number(value) and not (_finite(value) and 0 <= value <= _LARGEST):
        raise FileError(f"{where}: expected a number of at least 0 and at most {_LARGEST:g}, got {shorten(value)}")
    if where.rsplit(".", 1)[-1] == "compute" and not (_number(value) and value > 0):
        raise FileError(f"{where}: expected a number above 0, got {shorten(value)}")


def _check_value(shipped: Any, own: Any, where: str, entry: Any) -> None:
    if _number(shipped) and not where.endswith(".bias"):
        if not _finite(own):
            raise FileError(f"{where}: expected a finite number, got {shorten(own)}")
        divides = shipped > 0 and bool(_DIVIDES & set(_keys(where)))
        if divides and own == 0:
            raise FileError(f"{where}: must be above 0, got {shorten(own)}")
        if shipped >= 0 and own < 0:
            raise FileError(f"{where}: must be at least 0, got {shorten(own)}")
        part = _LEAST_EXPONENT if where.endswith(".exponent") else _LEAST_PART
        least, most = shipped * part if divides else 0.0, (abs(shipped) or 1.0) * _MOST_TIMES
        if not least <= abs(own) <= most:
            raise FileError(f"{where}: expected a number from {least:g} to {most:g}, got {shorten(own)}")
    elif isinstance(shipped, bool) != isinstance(own, bool) or (isinstance(shipped, str) and not isinstance(own, str)):
        raise FileError(f"{where}: expected {type(shipped).__name__}, got {shorten(own)}")
    elif isinstance(own, str) and own not in (known := _texts(entry)):
        raise FileError(f"{where}: {shorten(own)}: not a name that this calibration has{nearest_hint(own, known)}")


def _texts(entry: Any) -> set[str]:
    """Every key and text of an entry."""
    if isinstance(entry, Mapping):
        return {str(key) for key in entry}.union(*map(_texts, entry.values()))
    if isinstance(entry, list):
        return set().union(*map(_texts, entry))
    return {entry} if isinstance(entry, str) else set()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    """Whether it is a number that a law can take."""
    try:
        return _number(value) and math.isfinite(value)
    except OverflowError:  # a whole number with more digits than a float has
        return False
