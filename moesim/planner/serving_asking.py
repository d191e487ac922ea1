"""A question about serving in one line, as the specification of a plan: the options over what a plan file says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.catalog.yaml_files import read_mapping
from moesim.errors import UserError
from moesim.files import plain_name
from moesim.planner.asking import Line, _listed, _mapping, _prices, _said, _search
from moesim.planner.serving_fields import with_stated
from moesim.planner.serving_run import read_serving_spec, serves
from moesim.planner.serving_spec import ServingPlanSpec
from moesim.scenario.loading import override_key


def is_serving(file: Path | None, asked: bool) -> bool:
    """Whether a line is about serving: its options are, or its file is."""
    return asked or (file is not None and serves(read_mapping(file), file.parent))


def serving_spec_of(file: Path | None, line: Line) -> tuple[ServingPlanSpec, Path]:
    """The specification that a file and a line make together, and the folder that names in it refer to."""
    document = read_mapping(file) if file else {}
    alone = "workload" in document and "scenario" not in document  # a scenario's file, whose engines are searched anew
    document = {"scenario": document} if alone else dict(document)
    where, folder = str(file) if file else "plan", file.parent if file else Path()
    scenario = document.get("scenario") or {}
    if isinstance(scenario, str):
        path, alone = folder / scenario, True
        scenario, folder = read_mapping(path), path.parent
    scenario = _scenario(dict(scenario), line)
    search = {**_mapping(document, "search", where), **_search(line)}
    document |= {
        "scenario": scenario,
        "search": search if alone else with_stated(search, scenario),
        "limits": {**_mapping(document, "limits", where), **_said(line.limits)},
        "prices": {**_mapping(document, "prices", where), **_prices(line)},
        **_said(line.how),
    }
    if _listed(line.models):
        document["models"] = _listed(line.models)
    return read_serving_spec({"name": plain_name(file.stem if file else "plan"), **document}, where), folder


def workload(
    *,
    rate: float | None,
    concurrency: int | None,
    tokens: tuple[int | None, int | None],
    requests: int | None,
    serve: bool,
) -> dict[str, Any]:
    """The keys of a serving workload that options state, none where they state nothing of serving; `tokens` of a prompt
    and of an output."""
    if rate is not None and concurrency is not None:
        raise UserError("--rate and --concurrency say how requests arrive: give one")
    arrivals: dict[str, Any] | None = {"kind": "poisson", "rate": rate} if rate is not None else None
    if concurrency is not None:
        arrivals = {"kind": "closed", "concurrency": concurrency}
    found = {"input_tokens": tokens[0], "output_tokens": tokens[1], "requests": requests, "arrivals": arrivals}
    stated = _said(found)
    return {**({"kind": "serving"} if serve else {}), **stated}


def _scenario(scenario: dict[str, Any], line: Line) -> dict[str, Any]:
    """The scenario's keys with the workload of the line and its settings."""
    stated = scenario.get("workload") or {}
    work = {"kind": "serving", **(stated if isinstance(stated, Mapping) else {}), **_said(line.workload)}
    found = {**scenario, "workload": work}
    for setting in line.settings:
        found = override_key(found, setting)
    return found
