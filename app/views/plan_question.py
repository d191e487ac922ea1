"""The question of the page Plan: what its controls say, as a plan's specification with all that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from moesim import Scenario, catalog
from moesim.errors import Problem
from moesim.planner.run import statement
from moesim.specs.plan import Objective, PlanSpec
from shared import answers, fields, links, shown

PAGE = "plan"
DEFAULT = "olmoe-8-h100"
LIMITS = {
    "days": ("Days to train", "30"),
    "dollars": ("Dollars", "2M$"),
    "dropped_fraction": ("Copies dropped", "1%"),
    "power": ("Power", "5 MW"),
    "gpus": ("Most GPUs", "1024"),
    "memory_headroom": ("Memory that stays free", "10%"),
}
KEYS = (
    *("scenario", "set", "model", "gpu", "count", "fabric", "tokens", "price", "objective", "candidates", "simulate"),
    *LIMITS,
)
BUDGETS = ("1000", "3000", "10000", "30000", "100000")


@dataclass(frozen=True)
class Asked:
    """What the page asks: the scenario that it starts from, its file's name and overrides, and the plan."""

    name: str
    settings: tuple[str, ...]
    plan: tuple[PlanSpec, Path] | None
    problems: tuple[Problem, ...]

    @property
    def key(self) -> tuple[str, str]:
        """The same for the same question."""
        return self.name, self.plan[0].model_dump_json() if self.plan else ""


def controls() -> Asked:
    """Draws the controls in the sidebar and reads them."""
    files = answers.scenario_files()
    name = fields.choice(PAGE, "scenario", "Start from", files, DEFAULT if DEFAULT in files else next(iter(files)))
    told = links.values(PAGE, "set")
    first = answers.scenario(name)
    if first.value is None:
        return Asked(name, (), None, first.problems)
    said = _said(first.value)
    tokens = fields.text(PAGE, "tokens", "Tokens to train on", hint="1T", help_="as the scenario has it, unless given")
    settings = (*told, *([f"workload.total_tokens={tokens}"] if tokens else []))
    st.markdown("**Limits**")
    limits = {key: (fields.text(PAGE, key, label, hint=hint), label) for key, (label, hint) in LIMITS.items()}
    said["limits"] = {key: _number(text) for key, (text, _) in limits.items() if text}
    with st.expander("Prices and search"):
        said["prices"] = dict(_price(line) for line in fields.lines(PAGE, "price", "Prices, one a line: `GPU=2.5`"))
        said["candidates"] = int(fields.choice(PAGE, "candidates", "Layouts screened", BUDGETS, "3000"))
        said["simulate"] = fields.number(PAGE, "simulate", "Best layouts simulated", 2, 0, 10)
        fields.lines(PAGE, "set", "What else stays, one a line: `a.b=value`")
    based = answers.scenario(name, settings)
    if based.value is None:
        return Asked(name, settings, None, based.problems)
    scenario = based.value
    found = answers.attempt(lambda: statement(scenario, said))
    return Asked(name, settings, found.value, found.problems)


def _said(first: Scenario) -> dict[str, Any]:
    """Model, GPUs and objective."""
    model = fields.choice(PAGE, "model", "Model", (first.model.name, *catalog.names("models")), first.model.name)
    gpus = fields.choices(PAGE, "gpu", "GPUs to choose from", catalog.names("gpus"), [first.cluster.gpu.name])
    count = fields.text(PAGE, "count", "How many", str(first.cluster.gpus), hint="64, 128, 256 or auto")
    fabrics = fields.choices(PAGE, "fabric", "Fabrics (each GPU's usual one unless given)", catalog.names("fabrics"))
    objective = fields.choice(PAGE, "objective", "Best is", get_args(Objective), "cost", told=_objective)
    search = {"cluster.gpu": list(gpus), "cluster.gpus": [_number(part) for part in count.split(",") if part.strip()]}
    if fabrics:
        search["cluster.fabric"] = list(fabrics)
    said: dict[str, Any] = {"search": search, "objective": objective}
    return {**said, "models": [model]} if model != first.model.name else said


def explain(asked: Asked) -> None:
    """All that stands in the way."""
    names = {f"limits.{key}": label for key, (label, _) in LIMITS.items()}
    told = [Problem(names.get(problem.where, problem.where), problem.what) for problem in asked.problems]
    shown.problems(told, "This question cannot be asked")


def _objective(name: str) -> str:
    words = {"cost": "cheapest", "time": "quickest", "tokens-per-dollar": "most tokens per dollar"}
    return words.get(name, "fewest GPUs")


def _number(text: str) -> int | str:
    text = text.strip()
    return int(text) if text.isdecimal() else text


def _price(line: str) -> tuple[str, str]:
    name, _, dollars = line.partition("=")
    return name.strip(), dollars.strip()
