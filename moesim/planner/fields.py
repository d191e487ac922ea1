"""Reads what a plan's `search` says: lists of values by a scenario's field, every mistake with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from moesim.errors import Problem, UserError, nearest_hint, shorten
from moesim.network.dispatchers import DISPATCHERS
from moesim.scenario.scenario import Recompute
from moesim.specs.parallelism import OverlapSpec, ScheduleKind, ScheduleSpec
from moesim.specs.routing import CapacitySpec

MOST_VALUES = 64
"""Values that one list may hold."""
_DEGREES = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")
_OF_LAYOUT = (
    *(f"parallelism.{name}" for name in _DEGREES),
    "workload.micro_batch",
    "recompute",
    "schedule.kind",
    "overlap",
)
_SHORT = {"schedule": "schedule.kind", "dispatcher": "dispatcher.kind"}


@dataclass(frozen=True)
class Wanted:
    """The values to try; None or absent where the plan does not say. `degrees` are those of `parallelism` and the
    micro-batch; `gpus` () means that the planner chooses."""

    gpu: tuple[Any, ...] | None = None
    gpus: tuple[int, ...] | None = None
    fabric: tuple[Any, ...] | None = None
    degrees: dict[str, tuple[int, ...]] = field(default_factory=dict)
    recomputes: tuple[Recompute, ...] | None = None
    schedules: tuple[ScheduleSpec, ...] | None = None
    capacities: tuple[Any, ...] | None = None
    dispatchers: tuple[str, ...] | None = None
    overlaps: tuple[dict[str, Any], ...] | None = None


def read(search: Mapping[str, Any], found: list[Problem]) -> Wanted:
    """The wanted values; what cannot be read is added to `found`."""
    said: dict[str, Any] = {}
    overlap: dict[str, list[Any]] = {}
    for key, value in search.items():
        name, where = _SHORT.get(key, key), f"search.{key}"
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values or len(values) > MOST_VALUES:
            found.append(Problem(where, f"expected a list of 1 to {MOST_VALUES} values, got {len(values)}"))
        elif name.startswith("overlap."):
            overlap[name.removeprefix("overlap.")] = list(values)
        elif name not in _READERS:
            found.append(
                Problem(where, f"unknown field{nearest_hint(name, [*_READERS, 'overlap.expert_communication'])}")
            )
        else:
            said[name] = _values(name, values, where, found)
    if overlap:
        combined = [dict(zip(overlap, chosen, strict=True)) for chosen in product(*overlap.values())]
        said["overlap"] = _values("overlap", combined, "search.overlap", found)
    return _wanted(said)


def with_stated(search: Mapping[str, Any], scenario: Mapping[str, Any]) -> dict[str, Any]:
    """What to search where a scenario's keys state some of it: such a field has that one value, unless searched."""
    found: dict[str, Any] = {}
    named = {_SHORT.get(key, key) for key in search}
    for key in _READERS:
        if key not in named and not key.startswith("cluster."):
            value = _at(scenario, key)
            found |= {} if value is None else {key: [value]}
    if any(key.startswith("overlap.") for key in search):
        found.pop("overlap", None)
    return {**found, **search}


def searched_anew(search: Mapping[str, Any], scenario: Mapping[str, Any]) -> bool:
    """Whether values are searched for a field of the layout that a scenario's keys state otherwise."""
    named = {_SHORT.get(key, key): value for key, value in search.items()}
    stated = {key: _at(scenario, key) for key in _OF_LAYOUT}
    return any(value is not None and named.get(key) not in (value, [value]) for key, value in stated.items())


def one_recompute(value: Recompute) -> Recompute:
    """One name for one thing: `selective` is core attention, an empty list is none."""
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(value)) or "none"
    return ("core_attn",) if value == "selective" else value


def _at(scenario: Mapping[str, Any], key: str) -> Any:
    """The value of a field "a.b"; a lone name of a schedule or dispatcher is its kind."""
    node: Any = scenario
    for part in key.split("."):
        if part == "kind" and isinstance(node, str):
            return node
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _values(name: str, values: list[Any], where: str, found: list[Problem]) -> tuple[Any, ...]:
    """Each value read, once."""
    kept: list[Any] = []
    for place, value in enumerate(values):
        try:
            read_value = _READERS[name](value)
        except ValidationError as error:
            found.append(Problem(f"{where}.{place}", f"{shorten(value)!r}: {error.errors()[0]['msg']}"))
        except UserError as error:
            found.append(Problem(f"{where}.{place}", str(error)))
        else:
            kept += [read_value] if read_value not in kept else []
    return tuple(kept)


def _wanted(said: dict[str, tuple[Any, ...]]) -> Wanted:
    degrees = {name: said[f"parallelism.{name}"] for name in _DEGREES if f"parallelism.{name}" in said}
    if "workload.micro_batch" in said:
        degrees["micro_batch"] = said["workload.micro_batch"]
    names = {"cluster.gpu": "gpu", "cluster.fabric": "fabric", "recompute": "recomputes", "schedule.kind": "schedules"}
    names |= {"routing.capacity": "capacities", "dispatcher.kind": "dispatchers", "overlap": "overlaps"}
    values = {name: said[key] for key, name in names.items() if said.get(key)}
    if "cluster.gpus" in said:
        values["gpus"] = () if "auto" in said["cluster.gpus"] else tuple(sorted(said["cluster.gpus"]))
    return Wanted(degrees=degrees, **values)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 22:
        raise UserError(f"expected a whole number of at least 1, got {shorten(value)}")
    return value


def _count(value: Any) -> int | str:
    return value if value == "auto" else _whole(value)


def _named(value: Any) -> Any:
    if not isinstance(value, (str, Mapping)):
        raise UserError(f"expected a name or a mapping, got {shorten(value)}")
    return value


def _schedule(value: Any) -> ScheduleSpec:
    if value not in get_args(ScheduleKind):
        raise UserError(f"unknown schedule {shorten(value)!r}{nearest_hint(str(value), get_args(ScheduleKind))}")
    return ScheduleSpec(kind=value)


def _dispatcher(value: Any) -> str:
    known = ["auto", *DISPATCHERS]
    if value not in known:
        raise UserError(f"unknown dispatcher {shorten(value)!r}{nearest_hint(str(value), known)}")
    return str(value)


def _recompute(value: Any) -> Recompute:
    return one_recompute(_RECOMPUTE.validate_python(tuple(value) if isinstance(value, list) else value))


def _capacity(value: Any) -> CapacitySpec | str:
    if value == "dropless":
        return "dropless"
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return CapacitySpec.model_validate({"factor": value} if plain else value)


def _overlap(value: Any) -> dict[str, Any]:
    """Fields of the overlap that replace the scenario's."""
    if not isinstance(value, Mapping):
        raise UserError(f"expected a mapping such as {{expert_communication: true}}, got {shorten(value)}")
    unknown = [str(key) for key in value if key not in OverlapSpec.model_fields]
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}{nearest_hint(unknown[0], OverlapSpec.model_fields)}")
    OverlapSpec.model_validate(dict(value))
    return dict(value)


def _redundant(value: Any) -> int:
    if value != 0 or isinstance(value, bool):
        raise UserError(f"training keeps one copy of every expert, 0 redundant ones: got {shorten(value)}")
    return 0


_RECOMPUTE: TypeAdapter[Any] = TypeAdapter(Recompute)
_READERS: dict[str, Callable[[Any], Any]] = {
    "cluster.gpu": _named,
    "cluster.gpus": _count,
    "cluster.fabric": _named,
    **{f"parallelism.{name}": _whole for name in _DEGREES},
    "workload.micro_batch": _whole,
    "recompute": _recompute,
    "schedule.kind": _schedule,
    "routing.capacity": _capacity,
    "dispatcher.kind": _dispatcher,
    "overlap": _overlap,
    "placement.redundant_experts": _redundant,
}
KEYS = tuple(_READERS)
