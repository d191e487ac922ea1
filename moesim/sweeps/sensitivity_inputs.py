"""The inputs that a sensitivity moves: which ones a scenario has, over which range each goes, and why.

Ranges that nobody states are the calibration "sensitivity-ranges".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from moesim import catalog
from moesim.errors import ScenarioError, UserError, nearest_hint
from moesim.scenario.loading import AnyScenario, load
from moesim.scenario.scenario import Scenario
from moesim.specs.sweep import Range
from moesim.sweeps.applying import applies, base_value
from moesim.sweeps.calibrated import host_input, levels, stack_input
from moesim.sweeps.fields import FACTOR, LABELS
from moesim.sweeps.inputs import Input, Values, of_field
from moesim.sweeps.ranges import read_range

Rule = Mapping[str, Any]
_IN_FILES = ("stack", "host")


def inputs_of(scenario: AnyScenario, metric: str, over: Mapping[str, Any] | None) -> tuple[Input, ...]:
    """The inputs of `over`, or all that apply to the scenario; raises `UserError` for a range that is none."""
    known = {one.field: one for one in _defaults(scenario, metric)}
    if over is None:
        return tuple(known.values())
    if not over:
        raise UserError("over names no field")
    return tuple(_asked(scenario, field, wanted, known) for field, wanted in over.items())


def _asked(scenario: AnyScenario, field: str, wanted: Any, known: Mapping[str, Input]) -> Input:
    """One input of the user's; a range of None is the one that it has unless stated."""
    if wanted is None:
        if field not in known:
            raise UserError(f"{field}: give its range as {field}=LOW..HIGH{nearest_hint(field, known)}")
        return known[field]
    _, unit = LABELS.get(field, (field, ""))
    if unit == FACTOR and field not in known:
        raise UserError(f"{field}: {_absent(scenario, field)}")
    base = known[field].base if field in known else base_value(scenario, field)
    if base is None and field not in known:
        _must_exist(scenario, field)
    kind, unit = read_range(field, wanted, base, unit)
    if unit != FACTOR:
        return of_field(field, kind, base, unit, "as asked", asked=True)
    if field in _IN_FILES and isinstance(kind, Range):
        kind = levels(kind.low, kind.high)
    return replace(known[field], kind=kind, why="as asked", asked=True)


def _absent(scenario: AnyScenario, field: str) -> str:
    """Why a factor has nothing to multiply."""
    if field in _IN_FILES:
        return f"a training step has no {field} of its own"
    return recorded_note(scenario) or "a model without experts has no routing"


def _must_exist(scenario: AnyScenario, field: str) -> None:
    """Raises the `ScenarioError` of a misspelt field, before its range is read."""
    try:
        load(scenario.document(), [f"{field}=1"])
    except ScenarioError as error:
        unknown = [problem for problem in error.problems if problem.what.startswith("unknown key")]
        if unknown:
            raise ScenarioError(unknown, scenario.name) from error


def recorded_note(scenario: AnyScenario) -> str:
    """Why the routing's skew is not moved; empty where it is, or there is no routing."""
    load = scenario.routing.load
    if not scenario.model.is_moe or not (load.fitted or load.trace):
        return ""
    return f"the load {load.name} is kept as it was recorded; zipf or log_normal loads can be more or less uneven"


def _defaults(scenario: AnyScenario, metric: str) -> Iterator[Input]:
    """What applies to the scenario, in the order of the calibration."""
    rules = catalog.calibration("sensitivity-ranges")["inputs"]
    special: dict[str, Callable[[AnyScenario, Rule], Input | None]] = {
        "routing.load": _skew,
        "workload.micro_batch": _micro_batch,
        "stack": stack_input,
        "host": host_input,
    }
    for field, rule in rules.items():
        if field in special:
            found = special[field](scenario, rule)
            if found is not None:
                yield found
        elif applies(scenario, field, metric):
            yield from _plain(scenario, field, rule)


def _plain(scenario: AnyScenario, field: str, rule: Rule) -> Iterator[Input]:
    """A field of its own whose range the calibration states; of counts where the scenario's is one, and nothing where
    no other count is in the range."""
    base = base_value(scenario, field) or 0.0
    low = rule["low"] if "low" in rule else base * (1.0 - rule["below"])
    high = rule["high"] if "high" in rule else base * (1.0 + rule["above"])
    low, high = (_count(end) if isinstance(base, int) else float(end) for end in (min(low, base), max(high, base)))
    if low < high:
        yield of_field(field, Range(low=low, high=high), base, LABELS[field][1], rule["why"])


def _count(value: float) -> int:
    return max(1, round(value))


def _skew(scenario: AnyScenario, rule: Rule) -> Input | None:
    """The load's strength: its exponents, and each sequence's own tilt, times a factor."""
    load = scenario.routing.load
    if not scenario.model.is_moe or load.fitted or load.trace:
        return None
    low, base, high, why = rule["low"], 1.0, rule["high"], rule["why"]
    if not _strength(load):
        load = catalog.load("profiles", rule["uniform_to"])
        low, base, high, why = 0.0, 0.0, 1.0, f"from the load's evenness to that of {rule['uniform_to']}"
    strength = _strength(load)

    def setting(value: float) -> Values:
        return {f"routing.load.{name}": _times(size, value) for name, size in strength.items()}

    label, unit = LABELS["routing.load"]
    return Input(label, "routing.load", Range(low=float(low), high=float(high)), base, unit, why, setting)


def _strength(load: Any) -> dict[str, Any]:
    found = {name: getattr(load, name) for name in ("zipf", "log_normal", "sequence_tilt")}
    return {name: size for name, size in found.items() if size and (not isinstance(size, tuple) or any(size))}


def _times(size: Any, factor: float) -> Any:
    return [part * factor for part in size] if isinstance(size, tuple) else size * factor


def _micro_batch(scenario: AnyScenario, rule: Rule) -> Input | None:
    field = "workload.micro_batch"
    if not isinstance(scenario, Scenario):
        return None
    now, most = scenario.workload.micro_batch, scenario.workload.global_batch // scenario.data_parallel
    legal = [size for size in range(1, most + 1) if most % size == 0]
    values = [*[size for size in legal if size < now][-1:], now, *[size for size in legal if size > now][:1]]
    if len(values) == 1:
        return None
    return of_field(field, tuple(values), now, LABELS[field][1], rule["why"])
