"""What scenarios of all kinds state."""

from __future__ import annotations

from typing import Protocol

from moesim.specs.cluster import ClusterSpec
from moesim.specs.model import ModelSpec
from moesim.specs.routing import RoutingSpec


class Stated(Protocol):
    """A scenario as far as rules on its model, cluster and routing look at it."""

    @property
    def model(self) -> ModelSpec:
        """The model."""

    @property
    def cluster(self) -> ClusterSpec:
        """The cluster."""

    @property
    def routing(self) -> RoutingSpec:
        """The router and its load."""
