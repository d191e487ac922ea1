"""The inputs that a sensitivity moves: which ones a scenario has, over which range each goes, and why.

Ranges that nobody states are the calibration "sensitivity-ranges".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, hypot, log1p
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moesim import catalog
from moesim.catalog.yaml_files import read_mapping
from moesim.errors import ScenarioError, UserError, nearest_hint
from moesim.network.coefficients import law
from moesim.scenario.loading import load
from moesim.scenario.scenario import Scenario
from moesim.specs.cluster import TREES
from moesim.specs.sweep import Range
from moesim.step.model import StepModel
from moesim.step.stack import nearest
from moesim.sweeps.fields import FACTOR, LABELS, number_shown
from moesim.sweeps.ranges import read_range
from moesim.units import show

Values = dict[str, Any]
Setting = Callable[[float, Path], Values]
"""From an input's value to the fields it sets; what has to be a file is written into the folder."""


@dataclass(frozen=True)
class Input:
    """One input: its range or the values it can have, the scenario's own value (None: not stated), and why that range.

    `asked`: whether the user stated the range.
    """

    name: str
    field: str
    kind: Range | tuple[float, ...]
    base: float | None
    unit: str
    why: str
    setting: Setting
    asked: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return (self.kind.low, self.kind.high) if isinstance(self.kind, Range) else (min(self.kind), max(self.kind))

    def without(self, end: float) -> Input | None:
        """The same up to the scenario's own value on the side of `end`; None where nothing is left."""
        low, high = self.ends
        if isinstance(self.kind, tuple):
            left = tuple(value for value in self.kind if value != end)
            return replace(self, kind=left) if len(left) > 1 else None
        if self.base is None or not low < self.base < high:
            return None
        return replace(self, kind=Range(low=self.base if end == low else low, high=self.base if end == high else high))

    def shown(self, value: float | None) -> str:
        """A value of the input for reading."""
        if value is None:
            return "not stated"
        if self.unit == FACTOR:
            return f"x {value:.3g}"
        return show(value, self.unit) if self.unit else number_shown(value)


def inputs_of(scenario: Scenario, metric: str, over: Mapping[str, Any] | None) -> tuple[Input, ...]:
    """The inputs of `over`, or all that apply to the scenario; raises `UserError` for a range that is none."""
    known = {one.field: one for one in _defaults(scenario, metric)}
    if over is None:
        return tuple(known.values())
    if not over:
        raise UserError("over names no field")
    return tuple(_asked(scenario, field, wanted, known) for field, wanted in over.items())


def _asked(scenario: Scenario, field: str, wanted: Any, known: Mapping[str, Input]) -> Input:
    """One input of the user's; a range of None is the one that it has unless stated."""
    if wanted is None:
        if field not in known:
            raise UserError(f"{field}: give its range as {field}=LOW..HIGH{nearest_hint(field, known)}")
        return known[field]
    label, unit = LABELS.get(field, (field, ""))
    if unit == FACTOR and field not in known:
        raise UserError(f"{field}: {recorded_note(scenario) or 'a model without experts has no routing'}")
    base = known[field].base if field in known else base_value(scenario, field)
    if base is None and field not in known:
        _must_exist(scenario, field)
    kind, unit = read_range(field, wanted, base, unit)
    if unit != FACTOR:
        return Input(label, field, kind, base, unit, "as asked", _field(field), asked=True)
    if field == "stack" and isinstance(kind, Range):
        kind = _levels(kind.low, kind.high)
    return replace(known[field], kind=kind, why="as asked", asked=True)


def _must_exist(scenario: Scenario, field: str) -> None:
    """Raises the `ScenarioError` of a misspelt field, before its range is read."""
    try:
        load(scenario.document(), [f"{field}=1"])
    except ScenarioError as error:
        unknown = [problem for problem in error.problems if problem.what.startswith("unknown key")]
        if unknown:
            raise ScenarioError(unknown, scenario.name) from error


def base_value(scenario: Scenario, field: str) -> float | None:
    """The number that the scenario has in a field, what follows from GPU and fabric included.

    Raises `UserError` where the field holds no number.
    """
    cluster = scenario.cluster
    gpu, fabric = cluster.gpu, cluster.fabric
    follows: dict[str, Callable[[], float | None]] = {
        "cluster.scale_up_bandwidth": lambda: cluster.scale_up_bandwidth or gpu.scale_up_bandwidth,
        "cluster.nic_bandwidth": lambda: cluster.nic_bandwidth or fabric.nic_bandwidth or gpu.nic_bandwidth,
        "cluster.oversubscription": lambda: cluster.oversubscription or fabric.oversubscription,
        "cluster.fabric.latency": lambda: fabric.latency or law("common").assumed("fabric_latency"),
    }
    if field in follows:
        return follows[field]()
    node: Any = scenario.document()
    for key in field.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    if node is not None and (isinstance(node, bool) or not isinstance(node, (int, float))):
        raise UserError(f"{field} is no number: a sensitivity moves numbers; moesim sweep takes names and lists")
    return node


def recorded_note(scenario: Scenario) -> str:
    """Why the routing's skew is not moved; empty where it is, or there is no routing."""
    load = scenario.routing.load
    if not scenario.model.is_moe or not (load.fitted or load.trace):
        return ""
    return f"the load {load.name} is kept as it was recorded; zipf or log_normal loads can be more or less uneven"


def _defaults(scenario: Scenario, metric: str) -> Iterator[Input]:
    """What applies to the scenario, in the order of the calibration."""
    rules = catalog.calibration("sensitivity-ranges")["inputs"]
    special = {"routing.load": _skew, "workload.micro_batch": _micro_batch, "stack": _stack}
    for field, rule in rules.items():
        if field in special:
            found = special[field](scenario, rule)
            if found is not None:
                yield found
        elif _applies(scenario, field, metric):
            yield _plain(scenario, field, rule)


def _applies(scenario: Scenario, field: str, metric: str) -> bool:
    cluster, compute = scenario.cluster, scenario.precision.compute
    kind, across = cluster.fabric.kind, cluster.domains > 1
    wired = across and kind not in ("none", "torus")
    inside = cluster.gpus > 1 and (cluster.gpus_per_domain > 1 or kind == "torus")
    if field.startswith("cluster.gpu.fp"):
        wanted = "cluster.gpu.fp4" if compute == "nvfp4" else "cluster.gpu.fp8" if "fp8" in compute else ""
        return field == wanted and base_value(scenario, field) is not None
    rules = {
        "cluster.scale_up_bandwidth": inside and cluster.gpu.scale_up_kind != "none",
        "cluster.nic_bandwidth": wired and kind != "links",
        "cluster.oversubscription": wired and kind in TREES,
        "cluster.fabric.latency": wired,
        "routing.capacity.factor": scenario.model.is_moe and scenario.routing.capacity != "dropless",
        "prices.gpu_hour": metric == "cost",
    }
    return rules.get(field, True) and base_value(scenario, field) is not None


def _plain(scenario: Scenario, field: str, rule: Mapping[str, Any]) -> Input:
    """A field of its own whose range the calibration states."""
    label, unit = LABELS[field]
    base = base_value(scenario, field) or 0.0
    low = rule["low"] if "low" in rule else base * (1.0 - rule["below"])
    high = rule["high"] if "high" in rule else base * (1.0 + rule["above"])
    kind = Range(low=float(min(low, base)), high=float(max(high, base)))
    return Input(label, field, kind, base, unit, rule["why"], _field(field))


def _field(field: str) -> Setting:
    return lambda value, folder: {field: value}


def _skew(scenario: Scenario, rule: Mapping[str, Any]) -> Input | None:
    """The load's strength: its exponents, and each sequence's own tilt, times a factor."""
    load = scenario.routing.load
    if not scenario.model.is_moe or load.fitted or load.trace:
        return None
    low, base, high, why = rule["low"], 1.0, rule["high"], rule["why"]
    if not _strength(load):
        load = catalog.load("profiles", rule["uniform_to"])
        low, base, high, why = 0.0, 0.0, 1.0, f"from the load's evenness to that of {rule['uniform_to']}"
    strength = _strength(load)

    def setting(value: float, folder: Path) -> Values:
        return {f"routing.load.{name}": _times(size, value) for name, size in strength.items()}

    label, unit = LABELS["routing.load"]
    return Input(label, "routing.load", Range(low=float(low), high=float(high)), base, unit, why, setting)


def _strength(load: Any) -> dict[str, Any]:
    found = {name: getattr(load, name) for name in ("zipf", "log_normal", "sequence_tilt")}
    return {name: size for name, size in found.items() if size and (not isinstance(size, tuple) or any(size))}


def _times(size: Any, factor: float) -> Any:
    return [part * factor for part in size] if isinstance(size, tuple) else size * factor


def _micro_batch(scenario: Scenario, rule: Mapping[str, Any]) -> Input | None:
    field = "workload.micro_batch"
    now, most = scenario.workload.micro_batch, scenario.workload.global_batch // scenario.data_parallel
    legal = [size for size in range(1, most + 1) if most % size == 0]
    values = [*[size for size in legal if size < now][-1:], now, *[size for size in legal if size > now][:1]]
    if len(values) == 1:
        return None
    label, unit = LABELS[field]
    return Input(label, field, tuple(values), now, unit, rule["why"], _field(field))


def _stack(scenario: Scenario, rule: Mapping[str, Any]) -> Input:
    """The software stack's step time over that of its calibration, within the range stated with every answer."""
    measured = scenario.cluster.calibration
    rates, name = StepModel(scenario).prices.rates, nearest(scenario.stack, measured)
    factor = float(catalog.calibration("stacks", measured)["time_factor"][name])
    own = read_mapping(Path(measured)) if measured else {}

    def setting(value: float, folder: Path) -> Values:
        path = folder / f"stack-{value:.9g}.yaml"
        if not path.exists():
            stacks = own.get("stacks", {})
            told = {**stacks, "time_factor": {**stacks.get("time_factor", {}), name: factor * value}}
            path.write_text(yaml.safe_dump({**own, "stacks": told}), encoding="utf-8")
        return {"cluster.calibration": str(path)}

    slower = exp(hypot(log1p(rates.band), log1p(rates.slower)))
    kind = _levels(1.0 / (1.0 + rates.band), slower, rule["levels"])
    label, unit = LABELS["stack"]
    return Input(label, "stack", kind, 1.0, unit, rule["why"], setting)


def _levels(low: float, high: float, count: int | None = None) -> tuple[float, ...]:
    """Factors evenly apart on a logarithmic scale: each is a calibration file of its own, so there are not many."""
    wanted = count or catalog.calibration("sensitivity-ranges")["inputs"]["stack"]["levels"]
    return tuple(float(value) for value in np.geomspace(low, high, wanted))
