"""Host time of an iteration: what the scheduler needs between iterations, and launches where no graph holds them.

Coefficients: calibration "serving".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.costs.compute import coefficients
from moesim.iteration.stack import compiled
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Host:
    """The host of an instance."""

    scenario: ServingScenario
    instance: InstanceSpec

    @cached_property
    def _launches(self) -> float:
        """Seconds to issue all kernels of an iteration one by one."""
        model, measured = self.scenario.model, self.scenario.cluster.calibration
        if self.scenario.cluster.gpu.generation in coefficients(measured)["compiled"] or compiled(self.scenario.stack):
            return 0.0
        layer = catalog.calibration("serving", measured)["host"]["layer"]
        routed = model.moe_layers if model.is_moe else 0
        return float(routed * layer["moe"] + (model.layers - routed) * layer["dense"])

    def seconds(self, kernels: Floats, requests: Floats, prompts: NDArray[np.bool_]) -> Floats:
        """Seconds [B] that the host adds to `kernels` seconds of work on `requests` of the instance.

        Graphs hold decoding alone; what they do not hold is issued while the GPU works, and the GPU waits where that
        takes longer.
        """
        data = catalog.calibration("serving", self.scenario.cluster.calibration)["host"]
        each = data["iteration"] + data["request"] * requests / self.instance.replicas
        issued = np.where(prompts | (not self.scenario.engine.cuda_graphs), self._launches, 0.0)
        return np.asarray(each + np.maximum(issued - kernels, 0.0))
