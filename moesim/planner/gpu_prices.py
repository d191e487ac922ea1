"""What a GPU costs an hour, by the plan or by its scenario."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim import catalog
from moesim.errors import Problem, ScenarioError, nearest_hint
from moesim.scenario.scenario import Scenario
from moesim.specs.cluster import ClusterSpec
from moesim.specs.plan import PlanSpec


def check_prices(spec: PlanSpec, found: list[Problem]) -> None:
    """Adds the prices of GPUs that nobody knows to `found`."""
    known = catalog.names("gpus")
    said = spec.search.get("cluster.gpu", ())
    tried = [*(said if isinstance(said, (list, tuple)) else [said]), _gpu_of(spec.scenario)]
    own = [value.get("name") for value in tried if isinstance(value, Mapping)]
    unknown = [name for name in spec.prices if name not in known and name not in own]
    found += [Problem(f"prices.{name}", f"unknown gpu {name!r}{nearest_hint(name, known)}") for name in unknown]


def _gpu_of(scenario: Any) -> Any:
    """The GPU that a scenario's keys name, None where they do not."""
    cluster = scenario.get("cluster") if isinstance(scenario, Mapping) else None
    return cluster.get("gpu") if isinstance(cluster, Mapping) else None


def gpu_hours(spec: PlanSpec, base: Scenario, clusters: tuple[ClusterSpec, ...]) -> tuple[float | None, ...]:
    """Dollars a GPU and hour of every cluster. Raises `ScenarioError` where only some have a price."""
    found = tuple(spec.prices.get(cluster.gpu.name, base.prices.gpu_hour) for cluster in clusters)
    if None in found and any(price is not None for price in found):
        missing = sorted({cluster.gpu.name for cluster, price in zip(clusters, found, strict=True) if price is None})
        problems = [
            Problem(f"prices.{name}", "is missing: others have a price, and costs are compared") for name in missing
        ]
        raise ScenarioError(problems, spec.name)
    return found
