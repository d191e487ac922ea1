"""Fields that sweeps and sensitivities move, as a reader knows them: their names in words, and their units."""

from __future__ import annotations

import json
from typing import Any

from moesim.units import UNITS, show

FACTOR = "x"
"""The unit of an input that multiplies what the scenario has."""
LABELS = {
    "cluster.gpu.bf16": ("GPU bf16 rate", "FLOP/s"),
    "cluster.gpu.fp8": ("GPU fp8 rate", "FLOP/s"),
    "cluster.gpu.fp4": ("GPU fp4 rate", "FLOP/s"),
    "cluster.gpu.memory_bandwidth": ("memory bandwidth", "B/s"),
    "cluster.scale_up_bandwidth": ("scale-up bandwidth", "B/s"),
    "cluster.nic_bandwidth": ("NIC bandwidth", "B/s"),
    "cluster.oversubscription": ("oversubscription", ""),
    "cluster.fabric.latency": ("fabric latency", "s"),
    "routing.load": ("routing skew", FACTOR),
    "routing.capacity.factor": ("capacity factor", ""),
    "workload.micro_batch": ("micro-batch", ""),
    "workload.arrivals.rate": ("requests a second", ""),
    "workload.arrivals.concurrency": ("requests in flight", ""),
    "workload.input_tokens.mean": ("prompt tokens", ""),
    "workload.output_tokens.mean": ("output tokens", ""),
    "engine.token_budget": ("token budget", ""),
    "engine.max_requests": ("most requests", ""),
    "engine.kv_cache_fraction": ("KV cache fraction", ""),
    "placement.offload.host_bandwidth": ("host bandwidth", "B/s"),
    "placement.offload.prefetch_accuracy": ("prefetch accuracy", ""),
    "stack": ("stack's time", FACTOR),
    "host": ("host's time", FACTOR),
    "prices.gpu_hour": ("GPU-hour price", "$/h"),
    "prices.electricity": ("electricity price", "$/kWh"),
}

_MOST_WHOLE = 1e9


def unit_of(field: str) -> str:
    """The SI unit of a field's numbers; "" where it has none, or none is known."""
    unit = LABELS.get(field, ("", ""))[1]
    return unit if unit in UNITS else ""


def number_shown(value: float) -> str:
    """A number without a unit; whole ones with all their digits."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < _MOST_WHOLE else f"{value:.4g}"


def value_shown(field: str, value: Any) -> str:
    """A value of a field for reading; a mapping, which a table holds as JSON, as its keys and values."""
    if isinstance(value, float):
        return show(value, unit_of(field)) if unit_of(field) else f"{value:.4g}"
    if isinstance(value, str) and value.startswith("{"):
        try:
            return ", ".join(f"{key} {inner}" for key, inner in json.loads(value).items())
        except ValueError:
            return value
    return str(value)
