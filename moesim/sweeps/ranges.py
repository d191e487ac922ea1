"""Ranges as a user says them: "200..800 Gb/s", "+-20%", two ends, or the values that there can be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from moesim.errors import UnitError, UserError, shorten
from moesim.specs.explain import explain
from moesim.specs.sweep import Range
from moesim.units import UNITS, parse, show

Kind = Range | tuple[float, ...]
_AROUND = re.compile(r"\s*(?:\+-|\+/-|±)\s*([\d.]+)\s*%\s*\Z")
_UNIT = re.compile(r"\s*[-+]?[\d.,_]+(?:[eE][-+]?\d+)?\s*(\D.*)\Z")
_HOW = "write LOW..HIGH, +-20%, two ends, or three and more values"


def read_range(field: str, wanted: Any, base: float | None, unit: str) -> tuple[Kind, str]:
    """The range or values that `wanted` says, in SI, and the unit to show them in; `unit` is the field's, "" unknown.

    A range has whole numbers where the scenario's own value `base` is whole, or where there is none and both ends are.
    Raises `UserError` naming the field.
    """
    try:
        kind, found = _read(wanted, base, unit)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    except ValidationError as error:
        told = "; ".join(str(problem) for problem in explain(error, Range))
        raise UserError(f"{field}: {told}") from error
    return (kind if isinstance(kind, tuple) else _like(kind, base)), found


def _read(wanted: Any, base: float | None, unit: str) -> tuple[Kind, str]:
    if isinstance(wanted, Range):
        return wanted, unit
    if isinstance(wanted, Mapping):
        return Range.model_validate(dict(wanted)), unit
    if isinstance(wanted, str) and (around := _AROUND.match(wanted)):
        return _around(float(around[1]) / 100.0, base), unit
    if isinstance(wanted, str):
        wanted = wanted.split("..", 1) if ".." in wanted else wanted.split(",")
    if not isinstance(wanted, Sequence) or len(wanted) < 2:
        raise UserError(f"{shorten(wanted)} is no range; {_HOW}")
    values, unit = _numbers(list(wanted), unit)
    if len(values) == 2:
        if not values[0] < values[1]:
            raise UserError(f"{show(values[0], unit)} is not below {show(values[1], unit)}: the lower end comes first")
        return Range(low=values[0], high=values[1]), unit
    return tuple(sorted(set(values))), unit


def _around(share: float, base: float | None) -> Range:
    if base is None or base <= 0:
        raise UserError("the scenario states no value above 0 to go around; write LOW..HIGH")
    return Range(low=base * (1.0 - share), high=base * (1.0 + share))


def _numbers(wanted: list[Any], unit: str) -> tuple[list[float], str]:
    """SI numbers; an end without a unit has that of the last one."""
    plain = [_plain(value) for value in wanted]
    if all(value is not None for value in plain):
        return [value for value in plain if value is not None], unit
    last = _UNIT.match(str(wanted[-1]))
    texts = [
        f"{value} {last[1]}" if told is not None and last else str(value)
        for value, told in zip(wanted, plain, strict=True)
    ]
    found = {}
    for dimension in (unit,) if unit in UNITS else UNITS:
        try:
            found[dimension] = [parse(text, dimension) for text in texts]
        except UnitError:
            if unit in UNITS:
                raise
    if len({tuple(values) for values in found.values()}) != 1:
        told = " to ".join(map(shorten, texts))
        raise UserError(f"{told} {'may mean several things' if found else 'have no unit in common'}; write SI numbers")
    dimension, values = next(iter(found.items()))
    return values, "" if dimension == "1" else dimension


def _plain(value: Any) -> float | None:
    """A number without a unit, whole where it is written so; None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    for kind in (int, float):
        try:
            return kind(str(value).strip())
        except ValueError:
            continue
    return None


def _like(found: Range, base: float | None) -> Range:
    """The range in the kind of number that the scenario's own value is."""
    if base is None or (found.log and isinstance(base, int)):
        return found
    kind = round if isinstance(base, int) else float
    low, high = kind(found.low), kind(found.high)
    if not low < high:
        raise UserError(f"no two whole numbers from {found.low:g} to {found.high:g}")
    return Range(low=low, high=high, log=found.log)
