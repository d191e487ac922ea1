"""Number formats of a serving scenario, in the words of the kernel laws."""

from __future__ import annotations

from moesim.costs.kernels.formats import number_format
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import KvFormat, ServingPrecision

# (format of the weights, whether the products run in 8 bits) -> the kernels' name of it
_MIXED = {
    ("mxfp4", False): "mxfp4-bf16",
    ("mxfp4", True): "mxfp4-mxfp8",
    ("nvfp4", False): "mxfp4-bf16",
    ("nvfp4", True): "mxfp4-mxfp8",
    ("int4", False): "w4a16",
    ("int4", True): "w4afp8",
    ("int8", False): "w8a16",
    ("fp8", False): "w8a16",
    ("fp8-block", False): "w8a16",
}
_KV_BYTES: dict[KvFormat, float] = {"auto": 2.0, "bf16": 2.0, "fp8": 1.0}


def expert_format(precision: ServingPrecision) -> str:
    """Format of the experts' products with their weights."""
    compute, weights = precision.expert_compute, precision.expert_weights
    if weights in ("auto", compute):
        return compute
    return _MIXED.get((weights, compute not in ("bf16", "fp16")), compute)


def weight_bytes(name: str) -> float:
    """Bytes of a stored weight with its scales."""
    return number_format(name).weight


def kv_bytes(scenario: ServingScenario) -> float:
    """Bytes of one value of the KV cache."""
    return _KV_BYTES[scenario.engine.kv_format]


def score_format(scenario: ServingScenario) -> str:
    """Format in which attention reads the KV cache: fp8 where it is kept so and the GPU has it."""
    return "fp8" if scenario.engine.kv_format == "fp8" and scenario.cluster.gpu.fp8 else "bf16"
