"""Validation cases: one published or own measurement each, read from files that hold a list of them.

A case has `id`, `kind`, an `op` (or, for a training step and serving, a `scenario`: its keys, or a file's path from the
case file's folder), what was `measured`, and may have a `source`, `ratio_to` (top-level keys of a second scenario that
differ from the first's: what was measured is then the first's over the second's), a `tolerance` (relative, one for all
metrics or by metric) and `known`, the reason for which a law is known to fail there. An item `defaults` in the list
holds `source`, `tolerance` and `known` of the cases after it, by kind where it says so, and `limits` on the error
statistics of all of them together. A case that cannot be used stays, with its problem.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesim.errors import FileError, Problem, UserError, nearest_hint, shorten
from moesim.specs.base import Spec
from moesim.specs.explain import explain
from moesim.units import parse
from moesim.validation.ops import KINDS, read_op
from moesim.validation.reading import read_list
from moesim.validation.scenario_files import read_scenario
from moesim.validation.statistics import STATISTICS

BY_SCENARIO = ("train_step", "serving")
"""The kinds that are described by a scenario."""
ALL_KINDS = (*KINDS, *BY_SCENARIO)
SHARED = ("source", "tolerance", "known", "limits")
FIELDS = {"id", "kind", "op", "scenario", "ratio_to", "measured", "source", "tolerance", "known", "note", "notes"}
SHIPPED = Path(__file__).parents[1] / "catalog" / "data" / "cases"

_WORDS = {"alltoall": "all_to_all", "moe_gemm": "expert_gemm", "training_step": "train_step"}
_GIGABYTES = ("busbw", "bus_bw", "algbw", "algo_bandwidth")
MOST_WRONG = 50_000
"""Cases after which files are given up where not one was of use."""
# No link is as slow as this in bytes/s, no kernel in FLOP/s: below, numbers are in the benchmark's own unit.
_LEAST_BANDWIDTH, _LEAST_FLOPS = 1e5, 1e6
_UNITS = {"time": "s", "latency": "s", "gpu_hours": "1"}


@dataclass(frozen=True)
class Case:
    """One case. `measured` is by metric, SI, "METRIC[KEY]" where a metric is a curve; `refused` says by metric why a
    stated value is of no use; `problem` why the case is of no use as a whole, "" where it is."""

    id: str
    kind: str
    where: str
    measured: dict[str, float]
    op: Spec | None = None
    scenario: dict[str, Any] | None = None
    ratio_to: dict[str, Any] | None = None
    tolerance: dict[str, float] = field(default_factory=dict)
    known: str = ""
    source: Any = None
    note: str = ""
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def shipped() -> list[Path]:
    """The case files that come with moesim."""
    return sorted(SHIPPED.glob("*.yaml"))


def read(paths: Iterable[str | os.PathLike[str]]) -> list[Case]:
    """The cases of all files, in their order; an id that stands twice is a problem of the later case.

    Raises `FileError` where a file cannot be read or holds no list.
    """
    found: list[Case] = []
    first: dict[str, str] = {}
    for path in map(Path, paths):
        for case in _of_file(path):
            told = first.setdefault(case.id, case.where)
            twice = "" if told == case.where else f"the id is given twice: it stands at {told} already"
            found.append(case if not twice else _broken(case, twice))
            if len(found) == MOST_WRONG and all(one.problem for one in found):
                example = f"the first, {found[0].where}: {found[0].problem}"
                raise UserError(f"not one of the first {MOST_WRONG:,} cases can be used; {example}")
    return found


def _broken(case: Case, problem: str) -> Case:
    return Case(case.id, case.kind, case.where, case.measured, source=case.source, problem=case.problem or problem)


def _of_file(path: Path) -> Iterable[Case]:
    defaults: dict[str, Any] = {}
    for number, item in enumerate(read_list(path), 1):
        where = f"{path.name}, item {number}"
        if isinstance(item, dict) and set(item) == {"defaults"}:
            defaults = _defaults(item["defaults"], where)
            continue
        yield one(item, where, defaults, path.parent)


def _defaults(value: Any, where: str) -> dict[str, Any]:
    """What the cases after it share; raises `UserError`, for a wrong default would be wrong in every case."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: defaults: expected a mapping of keys, got {shorten(value)}")
    for key in value:
        if key not in SHARED:
            raise UserError(f"{where}: defaults.{shorten(key)}: unknown key{nearest_hint(str(key), SHARED)}")
    _check_limits(value.get("limits", {}), where)
    return value


def _check_limits(limits: Any, where: str) -> None:
    """Raises `UserError` unless it is {KIND: {STATISTIC: number}}."""
    if not isinstance(limits, dict) or not all(isinstance(inner, dict) for inner in limits.values()):
        raise UserError(f"{where}: defaults.limits: expected {{KIND: {{STATISTIC: number}}}}")
    for kind, stated in limits.items():
        for known, name in ((ALL_KINDS, kind), *((STATISTICS, name) for name in stated)):
            if name not in known:
                raise UserError(f"{where}: defaults.limits.{shorten(name)}: not known{nearest_hint(str(name), known)}")
        for name, number in stated.items():
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise UserError(f"{where}: defaults.limits.{kind}.{name}: expected a number, got {shorten(number)}")


def one(item: Any, where: str, defaults: Mapping[str, Any] | None = None, folder: Path | None = None) -> Case:
    """The case that a plain mapping describes; whatever is wrong with it is its `problem`. A scenario's path starts in
    `folder`."""
    if not isinstance(item, Mapping):
        return Case(where, "unknown", where, {}, problem=f"expected a mapping of keys, got {shorten(item)}")
    shared = defaults or {}
    identity = str(item["id"]) if item.get("id") not in (None, "") else where
    kind = str(item.get("kind", "")).strip().lower().replace("-", "_")
    kind = _WORDS.get(kind, kind)
    found: list[str] = []
    measured, refused = _measured(item.get("measured"), found)
    case = Case(
        id=shorten(identity, 200),
        kind=kind if kind in ALL_KINDS else "unknown",
        where=where,
        measured=measured,
        op=_op(kind, item, found),
        scenario=_scenario(kind, item, found, folder or Path()),
        ratio_to=_ratio_to(kind, item, found),
        tolerance=_tolerance(item.get("tolerance", _by_kind(shared.get("tolerance"), kind)), found),
        known=str(item.get("known", _by_kind(shared.get("known"), kind)) or ""),
        source=_source(shared.get("source"), item.get("source")),
        note=str(item.get("note", item.get("notes")) or ""),
        limits=shared.get("limits", {}),
        refused=refused,
    )
    strange = [f"{shorten(key)}: unknown key{nearest_hint(str(key), FIELDS)}" for key in item if key not in FIELDS]
    if found:
        return _broken(case, "; ".join([*found, *strange]))
    return replace(case, note="; ".join(filter(None, [case.note, *strange]))) if strange else case


def _missing(key: str, value: Any) -> str:
    """The complaint about a mapping that is not there, or something else."""
    return f"{key}: is required" if value is None else f"{key}: expected a mapping of keys, got {shorten(value)}"


def _by_kind(value: Any, kind: str) -> Any:
    """A default, or that of the case's kind where it is given by kind."""
    if isinstance(value, Mapping) and set(value) & set(ALL_KINDS):
        return value.get(kind)
    return value


def _source(shared: Any, own: Any) -> Any:
    if isinstance(shared, Mapping) and isinstance(own, Mapping):
        return {**shared, **own}
    return own if own is not None else shared


def _op(kind: str, item: Mapping[Any, Any], found: list[str]) -> Spec | None:
    if kind not in ALL_KINDS:
        found.append(f"kind: {shorten(item.get('kind'))} is not known{nearest_hint(kind, ALL_KINDS)}")
        return None
    if kind not in KINDS:
        return None
    op = item.get("op")
    if not isinstance(op, Mapping):
        found.append(_missing("op", op))
        return None
    try:
        return read_op(kind, op)
    except ValidationError as error:
        found += [str(Problem(f"op.{p.where}" if p.where else "op", p.what)) for p in explain(error, KINDS[kind])]
    except UserError as error:
        found.append(str(error))
    return None


def _scenario(kind: str, item: Mapping[Any, Any], found: list[str], folder: Path) -> dict[str, Any] | None:
    if kind not in BY_SCENARIO:
        return None
    scenario = item.get("scenario")
    if isinstance(scenario, str):
        try:
            return read_scenario(folder / scenario)
        except FileError as error:
            found.append(f"scenario: {error}")
            return None
    if not isinstance(scenario, Mapping):
        found.append(_missing("scenario", scenario) + ("" if scenario is None else ", or a file's path"))
        return None
    return dict(scenario)


def _ratio_to(kind: str, item: Mapping[Any, Any], found: list[str]) -> dict[str, Any] | None:
    if kind != "train_step" or "ratio_to" not in item:
        return None
    changes = item["ratio_to"]
    if not isinstance(changes, Mapping) or not changes:
        found.append(f"ratio_to: expected a mapping of the scenario's keys that differ, got {shorten(changes)}")
        return None
    return dict(changes)


def _measured(value: Any, found: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics in SI, and why others are of no use."""
    if not isinstance(value, Mapping) or not value:
        found.append(_missing("measured", value))
        return {}, {}
    numbers: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, given in value.items():
        metric = shorten(name, 80)
        curve = {f"[{key}]": inner for key, inner in given.items()} if isinstance(given, Mapping) else {"": given}
        for label, raw in ((metric + point, inner) for point, inner in curve.items()):
            number = _number(metric, raw)
            if isinstance(number, str):
                refused[label] = f"measured.{label}: {number}"
            else:
                numbers[label] = number * _scale(metric, number)
    return numbers, refused


def _scale(metric: str, number: float) -> float:
    """Into SI where a benchmark's own word has a unit of its own: TFLOP/s, and nccl-tests' GB/s in bare numbers."""
    word = metric.strip().lower()
    if word.startswith("tflop"):
        return 1e12 if number < _LEAST_FLOPS else 1.0
    return 1e9 if word in _GIGABYTES and number < _LEAST_BANDWIDTH else 1.0


def _number(metric: str, raw: Any) -> float | str:
    """A measured value in SI, or what is wrong with it."""
    unit = "s" if metric.endswith(("time", "latency", "seconds", "dispatch", "combine")) else _UNITS.get(metric, "1")
    if isinstance(raw, str) and (metric.lower() in _GIGABYTES or metric.endswith("bandwidth")):
        unit = "B/s"
    try:
        value = parse(raw, unit)
    except UserError as error:
        return str(error) if unit != "1" else f"expected a finite number, got {shorten(raw)}"
    share = metric.endswith(("fraction", "share"))
    if not math.isfinite(value) or value < 0 or (value == 0 and not share):
        return f"must be above 0, got {shorten(raw)}"
    return value


def _tolerance(value: Any, found: list[str]) -> dict[str, float]:
    """By metric, "" for all others."""
    if value is None:
        return {}
    given = value if isinstance(value, Mapping) else {"": value}
    numbers: dict[str, float] = {}
    for metric, raw in given.items():
        try:
            numbers[str(metric)] = parse(raw, "1")
        except UserError as error:
            found.append(f"tolerance: {error}")
            continue
        if numbers[str(metric)] <= 0:
            found.append(f"tolerance: must be above 0, got {shorten(raw)}")
    return numbers
