"""The question of the page Sweep: scenario, axes with their values, seeds and road, as a sweep file would say it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import streamlit as st

from moesim.catalog.yaml_files import parse_mapping
from moesim.errors import Problem
from moesim.sweeps.run import statement
from shared import answers, fields, files

PAGE = "sweep"
DEFAULT = "olmoe-8-h100"
KEYS = ("scenario", "set", "x", "xs", "y", "ys", "seeds", "road", "metric", "view")
NONE = ""
MOST = 5000
AXES = {
    "routing.capacity.factor": "1.0, 1.25, 1.5, 2.0",
    "routing.load": "uniform, aux-loss-balanced, deepseek-v3-like",
    "routing.capacity": "dropless, {factor: 1.0}, {factor: 1.25}, {factor: 1.5}",
    "cluster.gpus": "64, 128, 256, 512",
    "cluster.gpu": "h100-sxm, h200-sxm, b200-sxm",
    "cluster.nic_bandwidth": "100 Gb/s, 200 Gb/s, 400 Gb/s, 800 Gb/s",
    "parallelism.expert": "1, 2, 4, 8",
    "parallelism.tensor": "1, 2, 4, 8",
    "parallelism.pipeline": "1, 2, 4",
    "workload.micro_batch": "1, 2, 4",
    "workload.global_batch": "512, 1024, 2048",
    "workload.sequence_length": "2048, 4096, 8192",
    "dispatcher.kind": "auto, nccl-all-to-all, deepep-normal",
    "dispatcher.multiprocessors": "8, 16, 20, 24, 32",
    "overlap.expert_communication": "false, true",
    "precision.compute": "bf16, fp8",
    "recompute": "none, full",
}


@dataclass(frozen=True)
class Asked:
    """What the page asks: a sweep's document, its axes and how many points it has."""

    spec: dict[str, Any] | None
    axes: tuple[str, ...]
    road: str
    count: int
    problems: tuple[Problem, ...]

    @property
    def key(self) -> str:
        """The same for the same question."""
        return json.dumps(self.spec, sort_keys=True, default=str)


def controls() -> Asked:
    """Draws the controls in the sidebar and reads them."""
    known = answers.scenario_files()
    name = fields.choice(PAGE, "scenario", "Scenario", known, DEFAULT if DEFAULT in known else next(iter(known)))
    first = _axis("x", "First axis", "workload.micro_batch")
    second = _axis("y", "Second axis", NONE)
    seeds = fields.number(PAGE, "seeds", "Seeds", 1, 1, 100)
    road = fields.choice(PAGE, "road", "Answered by", ("estimate", "simulate"), "estimate", told=_road, horizontal=True)
    with st.expander("What else changes"):
        settings = fields.lines(PAGE, "set", "Changes, one a line: `a.b=value`")
    axes = [axis for axis in (first, second) if axis is not None]
    problems = [problem for _, _, found in axes for problem in found]
    if len(axes) == 2 and axes[0][0] == axes[1][0]:
        problems.append(Problem(axes[0][0], "both axes are the same field"))
    written = answers.written(name, settings)
    problems += written.problems
    for document in (
        written.value or {},
        *({field.rpartition(".")[2]: value} for field, values, _ in axes for value in values),
    ):
        problems += files.refused(document)
    if problems:
        return Asked(None, (), road, 0, tuple(problems))
    grid = {field: values for field, values, _ in axes}
    spec = {"scenario": written.need(), "grid": grid, "road": road, **({"seeds": seeds} if seeds > 1 else {})}
    return _counted(spec, tuple(grid), road)


def _counted(spec: dict[str, Any], axes: tuple[str, ...], road: str) -> Asked:
    """The sweep, checked by itself, where it is not too long for a page."""
    found = answers.attempt(lambda: statement(spec)[0].count)
    count = found.value or 0
    problems = found.problems
    if count > MOST:
        problems = (Problem("", f"{count:,} points; a page answers {MOST:,} at most: use `moesim sweep`"),)
    return Asked(None if problems else spec, axes, road, count, tuple(problems))


def _axis(key: str, label: str, default: str) -> tuple[str, list[Any], list[Problem]] | None:
    """One axis: its field, its values, and what is wrong with them; None where it is not used."""
    options = [*([NONE] if key == "y" else []), *AXES]
    values = f"{key}s"
    field = fields.choice(PAGE, key, label, options, default, told=name_of_field, others=True, clears=values).strip()
    if not field:
        return None
    text = fields.text(PAGE, values, f"{label}: values", AXES.get(field, ""), hint="1, 2, 4")
    found = answers.attempt(lambda: parse_mapping(f"values: [{text}]", f"values of {field}")["values"])
    listed = found.value or []
    problems = list(found.problems) or ([] if listed else [Problem(field, "list at least one value")])
    return field, listed, problems


def name_of_field(field: str) -> str:
    """A field as it is written, or none."""
    return field or "none"


def _road(road: str) -> str:
    return "closed form" if road == "estimate" else "simulation"
