"""Inputs that stand in calibrations, not in scenarios: how long a stack's steps take, and its host's work.

A point that moves them gets a calibration file of its own, what the scenario's own file says included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import exp, hypot, log1p
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moesim import catalog
from moesim.catalog.yaml_files import read_mapping
from moesim.iteration import stack as serving_stack
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.step.model import StepModel
from moesim.step.stack import nearest
from moesim.sweeps.fields import LABELS
from moesim.sweeps.inputs import CALIBRATION, Input, Values

_HASH_BYTES = 8
_OF_SERVING = "output_tokens_per_second"


def stack_input(scenario: AnyScenario, rule: Mapping[str, Any]) -> Input:
    """The software stack's time over that of its calibration, within the range stated with every answer."""
    measured = scenario.cluster.calibration
    if isinstance(scenario, ServingScenario):
        name, entry = serving_stack.nearest(scenario.stack, measured), "serving"
        band = serving_stack.band(scenario.stack, measured, _OF_SERVING)
        low, high = 1.0 / (1.0 + band), 1.0 + band
    else:
        name, entry = nearest(scenario.stack, measured), "stacks"
        low, high = _of_training(scenario)
    factor = float(catalog.calibration(entry, measured)["time_factor"][name])

    def setting(value: float) -> Values:
        return {CALIBRATION: {entry: {"time_factor": {name: factor * value}}}}

    label, unit = LABELS["stack"]
    return Input(label, "stack", levels(low, high, rule["levels"]), 1.0, unit, rule["why"], setting)


def _of_training(scenario: Scenario) -> tuple[float, float]:
    rates = StepModel(scenario).prices.rates
    return 1.0 / (1.0 + rates.band), exp(hypot(log1p(rates.band), log1p(rates.slower)))


def host_input(scenario: AnyScenario, rule: Mapping[str, Any]) -> Input | None:
    """The host's times in an iteration, scheduling and launches, times a factor; of training in the stack's."""
    if not isinstance(scenario, ServingScenario):
        return None
    own = catalog.calibration("serving", scenario.cluster.calibration)["host"]

    def setting(value: float) -> Values:
        return {CALIBRATION: {"serving": {"host": _times(own, value)}}}

    label, unit = LABELS["host"]
    return Input(label, "host", levels(rule["low"], rule["high"], rule["levels"]), 1.0, unit, rule["why"], setting)


def _times(told: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Every number of nested entries times a factor."""
    return {
        name: _times(value, factor) if isinstance(value, Mapping) else float(value) * factor
        for name, value in told.items()
    }


def levels(low: float, high: float, count: int | None = None) -> tuple[float, ...]:
    """Factors evenly apart on a logarithmic scale: each is a calibration file of its own, so there are not many."""
    wanted = count or catalog.calibration("sensitivity-ranges")["inputs"]["stack"]["levels"]
    return tuple(float(value) for value in np.geomspace(low, high, wanted))


def point(scenario: AnyScenario, settings: list[Values], folder: Path) -> Values:
    """What several inputs set together; coefficients in a file in `folder`, written once."""
    found: Values = {}
    coefficients: dict[str, Any] = {}
    for setting in settings:
        coefficients = _merged(coefficients, setting.get(CALIBRATION, {}))
        found |= {field: value for field, value in setting.items() if field != CALIBRATION}
    if not coefficients:
        return found
    measured = scenario.cluster.calibration
    text = yaml.safe_dump(_merged(read_mapping(Path(measured)) if measured else {}, coefficients))
    path = folder / f"{hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).hexdigest()}.yaml"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return {**found, CALIBRATION: str(path)}


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, entry by entry; what `over` says goes first."""
    found = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = _merged(found[name], value) if both else value
    return found
