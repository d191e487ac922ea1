"""Which inputs of a sensitivity a scenario has, of training or of serving, and the value it has of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from moesim.errors import UserError
from moesim.network.coefficients import law
from moesim.scenario.loading import AnyScenario
from moesim.scenario.serving import ServingScenario
from moesim.specs.cluster import TREES

COSTS = ("cost", "cost_per_million_output_tokens")


def base_value(scenario: AnyScenario, field: str) -> float | None:
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


def applies(scenario: AnyScenario, field: str, metric: str) -> bool:
    """Whether a field of the calibration can move `metric` of the scenario, and has a value there to start from."""
    cluster, reach = scenario.cluster, _reach(scenario)
    kind = cluster.fabric.kind
    wired = reach.outside and kind not in ("none", "torus")
    rules: dict[str, bool] = {
        "cluster.gpu.fp8": any("fp8" in compute for compute in _formats(scenario)),
        "cluster.gpu.fp4": "nvfp4" in _formats(scenario),
        "cluster.scale_up_bandwidth": reach.inside and cluster.gpu.scale_up_kind != "none",
        "cluster.nic_bandwidth": wired and kind != "links",
        "cluster.oversubscription": wired and kind in TREES,
        "cluster.fabric.latency": wired,
        "routing.capacity.factor": scenario.model.is_moe and scenario.routing.capacity != "dropless",
        "prices.gpu_hour": metric in COSTS,
        **_of_serving(scenario),
    }
    return rules.get(field, True) and base_value(scenario, field) is not None


class _Reach(NamedTuple):
    """Whether GPUs talk inside scale-up domains, and between them."""

    inside: bool
    outside: bool


def _reach(scenario: AnyScenario) -> _Reach:
    """Of a training step all GPUs; of serving those of an instance, and of instances that hand KV caches over."""
    cluster = scenario.cluster
    near = cluster.gpus_per_domain > 1 or cluster.fabric.kind == "torus"
    if not isinstance(scenario, ServingScenario):
        return _Reach(cluster.gpus > 1 and near, cluster.domains > 1)
    largest, apart = max(pool.instance.gpus for pool in scenario.pools), scenario.disaggregated is not None
    spans = apart or largest > cluster.gpus_per_domain
    return _Reach((largest > 1 or (apart and cluster.domains == 1)) and near, cluster.domains > 1 and spans)


def _formats(scenario: AnyScenario) -> set[str]:
    """The formats that matrix products run in."""
    found = {str(scenario.precision.compute)}
    if isinstance(scenario, ServingScenario) and scenario.model.is_moe:
        found.add(scenario.precision.expert_compute)
    return found


def _of_serving(scenario: AnyScenario) -> dict[str, bool]:
    """Of fields that training does not have, or that are told there by their own metrics."""
    offload = scenario.placement.offload if isinstance(scenario, ServingScenario) else None
    kind = scenario.workload.kind if isinstance(scenario, ServingScenario) else ""
    return {
        "engine.token_budget": kind in ("serving", "prefill"),
        "workload.output_tokens.mean": kind in ("serving", "decode"),
        "placement.offload.host_bandwidth": offload is not None,
        "placement.offload.prefetch_accuracy": offload is not None and offload.prefetch != "none",
    }
