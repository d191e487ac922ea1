"""Software stacks: one factor a release on the step time, the host time of stacks that issue kernels slower, and how
far off a stack may be that no row tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from math import expm1, hypot, log1p, sqrt
from typing import Any

from moesim import catalog
from moesim.costs.compute import Rates, coefficients
from moesim.scenario.scenario import Scenario

# Nine in ten of a normal law lie within so many standard deviations.
_NINE_IN_TEN = 1.645


def _stacks(measured: str | None) -> dict[str, Any]:
    return catalog.calibration("stacks", measured)


def nearest(name: str, measured: str | None = None) -> str:
    """The calibrated stack that answers for `name`: itself, the nearest name, or the reference.

    `measured`, here and below: the user's own calibration file, which goes before the catalog.
    """
    data = _stacks(measured)
    known, reference = data["time_factor"], str(data["reference"])
    if name in known:
        return name
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), reference)


def time_factor(name: str, kernels: str | None, measured: str | None = None) -> float:
    """Step time of a stack against the reference release, and of a model whose kernels are known to run slower."""
    data = _stacks(measured)
    return float(data["time_factor"][nearest(name, measured)]) * float(data["kernels"].get(kernels, 1.0))


def moe_layer_host_seconds(name: str, measured: str | None = None) -> float | None:
    """Host seconds to issue an MoE layer, forward and backward, of a stack that is known to differ; None elsewhere."""
    known = _stacks(measured)["host_moe_layer"]
    # A factor of one's own on the whole step leaves a stack the host time of the nearest one.
    found = known.get(name, known.get(nearest(name)))
    return None if found is None else float(found)


def stack_note(name: str, measured: str | None = None) -> str:
    """Which calibration answered for the stack that the scenario names, and what that costs where it has none."""
    used = nearest(name, measured)
    if used == name:
        return f"software stack: {used}"
    told = "none named" if name == "auto" else f"no calibration of its own for {name}"
    spread = _stacks(measured)["unlisted"]
    return (
        f"software stack: {told}, {used} answered; the range holds how far stacks differ, steps from"
        f" {100 * spread['faster']:.0f} % faster to {100 * spread['slower']:.0f} % slower (assumed)"
    )


def trusted(rates: Rates, scenario: Scenario) -> Rates:
    """The rates with the range that the scenario's stack leaves them: that of one's own steps where there are any of
    this GPU, format, stack and make of layers, wider for a stack that the catalog does not hold."""
    measured, stack = scenario.cluster.calibration, scenario.stack
    own = own_steps(scenario)
    if own:
        return replace(rates, band=float(own["range"]), basis="fitted")
    stacks = _stacks(measured)
    if stack in stacks["time_factor"]:
        # A factor that was told by steps of another GPU, format or make is as far off as they leave it.
        error = stacks.get("standard_error", {}).get(f"time_factor.{stack}", 0.0)
        if not error or stack in _stacks(None)["time_factor"]:
            return rates
        return replace(rates, band=expm1(hypot(log1p(rates.band), _NINE_IN_TEN * error)), basis="assumed")
    spread = stacks["unlisted"]
    band = max(rates.band, float(spread["faster"]))
    beyond = max(0.0, log1p(spread["slower"]) ** 2 - log1p(band) ** 2)
    return replace(rates, band=band, slower=expm1(sqrt(beyond)), basis="assumed")


def own_steps(scenario: Scenario) -> Mapping[str, Any]:
    """What the scenario's calibration file says of steps measured on its GPU, in its format, on its stack, of its make
    (dense or MoE): `rows` and `range`; empty where there are none."""
    place: Any = coefficients(scenario.cluster.calibration).get("own", {})
    for key in own_place(scenario):
        place = place.get(key, {})
    return place if isinstance(place, Mapping) else {}


def own_place(scenario: Scenario) -> tuple[str, str, str, str]:
    """Where steps like the scenario's stand in `own` of a calibration file."""
    wanted = scenario.precision.compute
    make = "moe" if scenario.model.is_moe else "dense"
    return scenario.cluster.gpu.name, "bf16" if wanted == "fp16" else wanted, scenario.stack, make
