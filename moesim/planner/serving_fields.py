"""Reads what a plan of serving searches: lists of values by a scenario's field, every mistake with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moesim.errors import Problem, nearest_hint, shorten
from moesim.planner.fields import MOST_VALUES

Part = Literal["prefill", "decode"]
DEGREES = ("gpus", "tensor", "pipeline", "expert", "expert_tensor", "attention_data_parallel")
PARTS: tuple[Part, ...] = ("prefill", "decode")
_WHOLE = {f"instance.{name}" for name in DEGREES}
_WHOLE |= {f"disaggregated.{part}.{name}" for part in PARTS for name in (*DEGREES, "instances")}
_SETTINGS = {"engine.token_budget", "placement.redundant_experts", "engine.two_batch_overlap"}
_NAMES = {"cluster.gpu", "cluster.fabric", "dispatcher.prefill", "dispatcher.decode"}
KEYS = (*sorted(_NAMES), "cluster.gpus", *sorted(_WHOLE), "disaggregated", *sorted(_SETTINGS))
_AUTO = ("cluster.gpus", "expert_tensor", "attention_data_parallel")


@dataclass(frozen=True)
class Wanted:
    """The values to try by field; a field that is not there is the planner's to choose."""

    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def of(self, name: str, part: Part | None = None) -> tuple[Any, ...] | None:
        """The values of a degree of instances (of one `part` of a disaggregated deployment), None where not said."""
        own = self.values.get(f"disaggregated.{part}.{name}") if part else None
        return own or self.values.get(f"instance.{name}")


def read(search: Mapping[str, Any], found: list[Problem]) -> Wanted:
    """The wanted values; what cannot be read is added to `found`."""
    said: dict[str, tuple[Any, ...]] = {}
    for key, value in search.items():
        where, values = f"search.{key}", list(value) if isinstance(value, (list, tuple)) else [value]
        if key not in KEYS:
            found.append(Problem(where, f"unknown field{nearest_hint(key, KEYS)}"))
        elif not values or len(values) > MOST_VALUES:
            found.append(Problem(where, f"expected a list of 1 to {MOST_VALUES} values, got {len(values)}"))
        else:
            wrong = [(place, text) for place, one in enumerate(values) if (text := _mistake(key, one))]
            found += [Problem(f"{where}.{place}", text) for place, text in wrong]
            said[key] = tuple(_once(values))
    if said.get("cluster.gpus") and "auto" in said["cluster.gpus"]:
        said.pop("cluster.gpus")
    return Wanted(said)


def with_stated(search: Mapping[str, Any], scenario: Mapping[str, Any]) -> dict[str, Any]:
    """What to search where a scenario's keys state some of it: such a field has that one value, unless searched."""
    found: dict[str, Any] = {}
    for key in KEYS:
        value = _at(scenario, key)
        if key not in search and not key.startswith("cluster.") and not isinstance(value, Mapping):
            found |= {} if value is None else {key: [value]}
    if isinstance(scenario.get("disaggregated"), Mapping) and "disaggregated" not in search:
        found["disaggregated"] = [True]
    elif "instance" in scenario and "disaggregated" not in search:
        found["disaggregated"] = [False]
    return {**found, **search}


def _at(scenario: Mapping[str, Any], key: str) -> Any:
    node: Any = scenario
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _mistake(key: str, value: Any) -> str | None:
    """What is wrong with one value; None where nothing is."""
    if key in ("disaggregated", "engine.two_batch_overlap"):
        return None if isinstance(value, bool) else f"expected true or false, got {shorten(value)}"
    if key in _NAMES:
        named = isinstance(value, (str, Mapping)) if key.startswith("cluster") else isinstance(value, str)
        return None if named else f"expected a name, got {shorten(value)}"
    if value == "auto" and key.endswith(_AUTO):
        return None
    least = 0 if key == "placement.redundant_experts" else 1
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= 1 << 22
    return None if whole else f"expected a whole number of at least {least}, got {shorten(value)}"


def _once(values: list[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]
