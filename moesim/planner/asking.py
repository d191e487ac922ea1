"""A question in one line, as the specification of a plan: the options over what a plan file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.catalog.yaml_files import parse_mapping, read_mapping
from moesim.errors import Problem, ScenarioError, UserError, shorten
from moesim.files import plain_name
from moesim.planner.fields import with_stated
from moesim.planner.run import read_spec
from moesim.scenario.loading import override_key
from moesim.specs.plan import PlanSpec


@dataclass(frozen=True)
class Line:
    """The options of one line; empty text and None say nothing."""

    models: str
    gpu: str
    gpus: str
    fabric: str
    workload: Mapping[str, Any]
    limits: Mapping[str, Any]
    prices: tuple[str, ...]
    how: Mapping[str, Any]
    search: tuple[str, ...]
    settings: tuple[str, ...]


def spec_of(file: Path | None, line: Line) -> tuple[PlanSpec, Path]:
    """The specification that a plan file and a line make together, and the folder that names in it refer to."""
    document = read_mapping(file) if file else {}
    alone = "model" in document  # a scenario's file, whose layout is searched anew
    document = {"scenario": document} if alone else document
    where = str(file) if file else "plan"
    folder = file.parent if file else Path()
    scenario = document.get("scenario", {})
    own = scenario if isinstance(scenario, dict) and not alone else {}
    if isinstance(scenario, str):
        path = folder / scenario
        scenario, folder = read_mapping(path), path.parent
    scenario = _scenario(scenario if isinstance(scenario, dict) else {}, line)
    search = {**_mapping(document, "search", where), **_search(line)}
    document = {
        **document,
        "scenario": scenario,
        "search": with_stated(search, _scenario(own, line)),
        "limits": {**_mapping(document, "limits", where), **_said(line.limits)},
        "prices": {**_mapping(document, "prices", where), **_prices(line)},
        **_said(line.how),
    }
    models = _listed(line.models)
    if models:
        document["models"] = models
    return read_spec({"name": plain_name(file.stem if file else "plan"), **document}, where), folder


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _mapping(document: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, Mapping):
        raise ScenarioError([Problem(key, f"expected a mapping of keys, got {shorten(value)}")], where)
    return dict(value)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _scenario(scenario: dict[str, Any], line: Line) -> dict[str, Any]:
    """The scenario's keys with the workload of the line and its settings."""
    workload = scenario.get("workload") or {}
    found = {**scenario, "workload": {**workload, **_said(line.workload)} if isinstance(workload, dict) else workload}
    for setting in line.settings:
        found = override_key(found, setting)
    return found


def _search(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for expression in line.search:
        key, equals, text = expression.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{shorten(expression)!r} is not of the form FIELD=VALUE,VALUE")
        found[key.strip()] = parse_mapping(f"values: [{text}]", f"--search {shorten(key)}")["values"]
    if line.gpu:
        found["cluster.gpu"] = _listed(line.gpu)
    if line.gpus:
        found["cluster.gpus"] = [int(part) if part.isdecimal() else part for part in _listed(line.gpus)]
    if line.fabric:
        found["cluster.fabric"] = _listed(line.fabric)
    return found


def _prices(line: Line) -> dict[str, Any]:
    found = {}
    for expression in line.prices:
        for part in _listed(expression):
            name, equals, dollars = part.partition("=")
            if not equals:
                raise UserError(f"{shorten(part)!r} is not of the form GPU=DOLLARS, e.g. h100-sxm=2.5")
            found[name.strip()] = dollars.strip()
    return found
