"""Host time to issue the kernels of a layer, below which no layer is done. Coefficients: `training-compute.host`."""

from __future__ import annotations

from typing import Any

from moesim.costs.compute import coefficients
from moesim.scenario.scenario import Scenario
from moesim.step.stack import moe_layer_host_seconds


def issue_seconds(scenario: Scenario, kind: str, overlaps: bool) -> float:
    """Host seconds of a layer of this kind, forward and backward; `overlaps`: a forward runs beside a backward.

    Modules that run again issue their kernels again; operations that run again are stretched as their first run is.
    """
    data = coefficients(scenario.cluster.calibration)
    if scenario.cluster.gpu.generation in data["compiled"]:
        return 0.0
    host: dict[str, Any] = data["host"]
    issue = _moe_layer(scenario, host, overlaps) if kind == "moe" else float(host["dense_layer"])
    again = sum(host["recomputed"][kind].get(module, 0.0) for module in scenario.recomputed_modules)
    graphs = host["graphs"][scenario.stack_options.cuda_graphs]
    return float(issue * (1.0 + again) * graphs * scenario.microbatch_parts)


def _moe_layer(scenario: Scenario, host: dict[str, Any], overlaps: bool) -> float:
    """Host seconds of an MoE layer, before graphs take kernels off the host."""
    own, capacity = moe_layer_host_seconds(scenario.stack, scenario.cluster.calibration), scenario.routing.capacity
    issue = float(host["moe_layer"] if own is None else own)
    if capacity != "dropless" and capacity.pad:
        issue *= host["padded"]
    return issue * (host["overlap"] if overlaps else 1.0)
