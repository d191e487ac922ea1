"""From what a road observed to the metrics a planner reads, each with range, basis and note."""

from __future__ import annotations

from moesim.costs.memory import coefficients as memory_coefficients
from moesim.costs.memory import verdict
from moesim.provenance import Quantity
from moesim.results import money, reliability
from moesim.results.account import Account
from moesim.results.observed import EvenStep, Observed
from moesim.results.routing_metrics import routing
from moesim.results.skew import skew
from moesim.results.step_metrics import communication, compute, throughput
from moesim.results.uncertainty import Uncertainty, doubts
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork

__all__ = ["EvenStep", "Observed", "Summary", "doubts"]


class Summary:
    """Builds the metrics of one scenario from what a road observed."""

    def __init__(
        self, model: StepModel, routed: RoutedWork | None, observed: Observed, memory: dict[str, float]
    ) -> None:
        self.account, self.memory = Account(model, routed, observed), memory
        self.uncertainty = Uncertainty(self.account)
        self.scenario: Scenario = model.scenario

    def metrics(self) -> dict[str, Quantity]:
        """Every metric that applies."""
        routed = routing(self.account, self.uncertainty)
        drops = bool(routed) and routed["dropped_token_fraction"].value > 0
        return {
            **throughput(self.account, self.uncertainty),
            **communication(self.account, self.uncertainty),
            **compute(self.account, self.uncertainty),
            **routed,
            **skew(self.account, self.uncertainty, drops=drops),
            **self._memory(),
            **self._size(),
            **self._reliability(),
            **money.metrics(self.scenario, self.account.observed.run, self.uncertainty.step),
        }

    def notes(self) -> list[str]:
        """What the metrics of the whole run leave to say."""
        run = self.account.observed.run
        return [*reliability.notes(run), *money.notes(self.scenario, run, self.uncertainty.step)]

    def breakdown(self) -> dict[str, float]:
        """Where the step goes, seconds by part, mean over GPUs; the parts add up to the step."""
        return self.account.breakdown

    def _memory(self) -> dict[str, Quantity]:
        need, have = sum(self.memory.values()), self.scenario.cluster.gpu.memory
        band = float(memory_coefficients()["band"])
        total = Quantity.within(need, "B", band, "fitted", "fullest GPU; parts in the memory table")
        said = {"fits": "fits", "tight": "tight: needs off-load or recompute", "infeasible": "does not fit"}
        ratio = total.scaled(1 / have, "ratio", f"{said[verdict(need, have)]}; the GPU has {have / 1e9:.1f} GB")
        return {"memory_per_gpu": total, "fits_in_memory": ratio}

    def _size(self) -> dict[str, Quantity]:
        model = self.scenario.model
        count = parameters.count(model)
        flops = parameters.flops_per_token(model, self.scenario.workload.sequence_length)
        return {
            "total_parameters": Quantity.exact(float(count.total), "parameter", "matrices, embedding and head"),
            "active_parameters": Quantity.exact(float(count.active), "parameter", "used by one token"),
            "flops_per_token": Quantity.exact(flops, "FLOP", "forward and backward, causal attention counted half"),
        }

    def _reliability(self) -> dict[str, Quantity]:
        run = self.account.observed.run
        return {} if run is None else reliability.metrics(run, self.scenario)
