"""Serving stacks: one factor each on the time of an iteration, and the expert kernels that they run.

A stack is told as "PRODUCT RELEASE". Calibration "serving".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim import catalog

_ALIASES = {"tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "trt-llm": "trtllm"}


def _data(measured: str | None) -> dict[str, Any]:
    return catalog.calibration("serving", measured)


def plain(name: str) -> str:
    """A stack's name with its product as the calibration spells it."""
    product, *release = name.strip().lower().split()
    return " ".join([_ALIASES.get(product, product), *release])


def product(name: str) -> str:
    """The first word of a stack's name: who made it."""
    return plain(name).split()[0]


def nearest(name: str, measured: str | None = None) -> str:
    """The stack that answers for `name`: itself, its product as a whole, or the reference."""
    known: Mapping[str, float] = _data(measured)["time_factor"]
    if name in known:
        return name
    return next((own for own in (plain(name), product(name)) if own in known), str(_data(measured)["reference"]))


def time_factor(name: str, measured: str | None = None) -> float:
    """How many times as long the stack's iterations take as the law of isolated kernels says."""
    return float(_data(measured)["time_factor"][nearest(name, measured)])


def band(name: str, measured: str | None, metric: str) -> float:
    """Factor less 1 that nine in ten measured values of a metric are within: of the stack's throughputs, or of all for
    a stack without rows; latencies are known less well."""
    data = _data(measured)
    own = data.get("residual_by", {}).get(nearest(name, measured), data["residual"])
    apart = _data(None)["residual_of"].get("time_per_output_token" if metric == "request_latency" else metric)
    return max(float(own["range"]), float(apart["range"]) if apart else 0.0)


def first_token_bias() -> float:
    """Median of what the law says of measured times to the first token, over them, less 1."""
    return float(_data(None)["residual_of"]["time_to_first_token"]["bias"])


def stack_note(name: str, measured: str | None = None) -> str:
    """Which stack answered for the one that the scenario names."""
    used = nearest(name, measured)
    if used in (name, plain(name)):
        return f"serving stack: {used}"
    told = "none named" if name == "auto" else f"no calibration of its own for {name}"
    return f"serving stack: {told}, {used} answered"


def compiled(name: str, measured: str | None = None) -> bool:
    """Whether the stack enqueues a whole model at once, so that no host issues kernels one by one."""
    return nearest(name, measured) in _data(measured)["compiled"]


def expert_kernels(name: str, measured: str | None = None) -> str | None:
    """The family of expert kernels that a stack runs; None for the default."""
    found = _data(measured)["experts"].get(product(name))
    return None if found is None else str(found)
