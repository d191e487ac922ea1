"""Software stacks: one factor a release on the step time."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from moesim import catalog


def _stacks() -> dict[str, Any]:
    return catalog.calibration("stacks")


def nearest(name: str) -> str:
    """The calibrated stack that answers for `name`: itself, the nearest name, or the reference."""
    known, reference = _stacks()["time_factor"], str(_stacks()["reference"])
    if name in known:
        return name
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), reference)


def time_factor(name: str, kernels: str | None) -> float:
    """Step time of a stack against the reference release, and of a model whose kernels are known to run slower."""
    return float(_stacks()["time_factor"][nearest(name)]) * float(_stacks()["kernels"].get(kernels, 1.0))


def stack_note(name: str) -> str:
    """Which calibration answered for the stack that the scenario names."""
    used = nearest(name)
    if used == name:
        return f"software stack: {used}"
    if name == "auto":
        return f"software stack: none named, {used} answered"
    return f"software stack {name}: no calibration of its own, answered by {used}"
