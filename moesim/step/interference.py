"""What exchanges take from the compute that runs beside them: SMs, memory bandwidth, and a measured rest.

Law: while an exchange runs, products and scores go at the rate of the SMs that it leaves free, over the factor
`products`; memory-bound passes at the bandwidth that its bytes leave. Collectives inside an operation and a host that
is late anyway are not slowed. Coefficients: "overlap-interference". The exchange itself is not slowed: its kernels
hold their SMs, and links bind it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from moesim import catalog
from moesim.costs.compute import Rates
from moesim.network.dispatchers import ExchangeTimes
from moesim.step.mover import Mover
from moesim.step.operations import Operation
from moesim.step.phases import Phases
from moesim.step.prices import Prices


class Interference:
    """How many times as long operations take beside an exchange; `prices` are those without one, which may lack the
    exchanges' SMs already.

    At even load: rows decide how long an operation takes, hardly how much it is slowed.
    """

    def __init__(self, prices: Prices, mover: Mover) -> None:
        self.alone, self.mover = prices, mover
        self.data = catalog.calibration("overlap-interference", prices.scenario.cluster.calibration)
        self._known: dict[tuple[str, str, str, bool], float] = {}

    @cached_property
    def memory_taken(self) -> float:
        """Share of memory bandwidth that an exchange takes, mean over dispatch and combine."""
        moved = self.mover.even
        seconds = float(moved.dispatch.busiest.mean() + moved.combine.busiest.mean())
        if not seconds:
            return 0.0
        share = exchange_traffic(moved, self.data["memory_passes"]) / seconds / self.alone.rates.memory
        return float(min(share, self.data["most_memory"]))

    @cached_property
    def beside(self) -> Prices:
        """Prices of operations that an exchange runs beside all the time."""
        found = Prices(self.alone.scenario, self.mover.busy_multiprocessors, self.alone.overlaps)
        found.rates = rates_beside(found.rates, float(self.data["products"]), self.memory_taken)
        return found

    def factor(self, operation: Operation, deferred: bool) -> float:
        """How many times as long an operation takes while an exchange runs, at least 1."""
        layer_kind = self.alone.model.layer_kinds[operation.layer]
        key = (operation.kind, layer_kind, operation.phase, deferred)
        found = self._known.get(key)
        if found is None:
            alone, beside = (
                _seconds(prices.even(operation.kind, layer_kind), operation.phase, deferred)
                for prices in (self.alone, self.beside)
            )
            found = self._known[key] = max(1.0, beside / alone) if alone else 1.0
        return found


def rates_beside(rates: Rates, rest: float, memory_taken: float) -> Rates:
    """What is left of the rates of the free SMs while an exchange runs."""
    return replace(
        rates,
        gemm=rates.gemm / rest,
        grouped_gemm=rates.grouped_gemm / rest,
        bf16_gemm=rates.bf16_gemm / rest,
        scores=rates.scores / rest,
        memory=rates.memory * (1.0 - memory_taken),
    )


def _seconds(phases: Phases, phase: str, deferred: bool) -> float:
    if phase == "backward":
        return phases.backward if deferred else phases.backward + phases.weight
    return phases.weight if phase == "weight" else phases.forward


def exchange_traffic(moved: ExchangeTimes, passes: dict[str, float]) -> float:
    """Bytes of memory traffic on the mean rank for one dispatch and one combine."""
    ports = (moved.dispatch, moved.combine)
    sent = sum(float(port.bytes_up.mean() + port.bytes_out.mean()) for port in ports)
    received = sum(float(port.received_up.mean() + port.received_out.mean()) for port in ports)
    return passes["sent"] * sent + passes["received"] * received
