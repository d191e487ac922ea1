"""Software stacks: one factor a release on the step time, and the host time of stacks that issue kernels slower."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from moesim import catalog


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
    found = _stacks(measured)["host_moe_layer"].get(nearest(name, measured))
    return None if found is None else float(found)


def stack_note(name: str, measured: str | None = None) -> str:
    """Which calibration answered for the stack that the scenario names."""
    used = nearest(name, measured)
    if used == name:
        return f"software stack: {used}"
    if name == "auto":
        return f"software stack: none named, {used} answered"
    return f"software stack {name}: no calibration of its own, answered by {used}"
