"""How far every answer may be off: the residuals of the laws that made it, and the routing samples it was drawn from.

A law's band is the 90th percentile of its misses on the rows of its fit (`residual` in the calibrations); bands and
margins of sampling are independent, so their squares add up, on a logarithmic scale, for a law misses by factors.
"""

from __future__ import annotations

from functools import cached_property
from math import exp, hypot, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from moesim.costs.compute import coefficients
from moesim.network.coefficients import law
from moesim.provenance import Basis, Quantity, worst
from moesim.results.account import Account
from moesim.results.resampling import EXACT, Margin, Sampling, student
from moesim.step.model import StepModel
from moesim.step.operations import NOTHING_ASIDE

Floats = NDArray[np.float64]
COMPUTED = ("attention", "router", "experts", "dense layers", "embedding and head", "optimizer")


def doubts(model: StepModel) -> list[str]:
    """Why this scenario's step time is less certain than the calibration's own rows; each widens the range."""
    scenario, prices = model.scenario, model.prices
    found = []
    for kind in sorted(set(scenario.model.layer_kinds)):
        stretch = prices.host_factor(kind) / prices.stack_factor
        if stretch > prices.data["host_bound"]:
            found.append(
                f"host-bound: issuing the kernels of a {kind} layer takes longer than the GPU needs (x {stretch:.1f});"
                " CUDA graphs or larger microbatches would relax it"
            )
    if model.overlaps and scenario.stack_options.cuda_graphs == "none":
        found.append("expert-communication overlap without CUDA graphs: host time is poorly known")
    if model.aside != NOTHING_ASIDE:
        found.append(
            "halves, shared experts or weight gradients beside exchanges: no published step to hold them against"
        )
    if scenario.parallelism.data_sharding == "full" and scenario.parallelism.expert > 1:
        found.append("full sharding with expert parallelism: how much of it hides is poorly known")
    if scenario.model.sliding_window and "linear" in scenario.model.note.lower():
        found.append("linear or state-space layers are priced as windowed attention")
    return found


def ranged(
    value: float, unit: str, basis: Basis, note: str, *, band: float = 0.0, margin: Margin = EXACT, more: float = 0.0
) -> Quantity:
    """`value` with the range that a law's relative band and a margin of sampling make together; `more`: a band upwards
    alone, of a value above 0."""
    if value > 0 and margin.below < value:
        down = hypot(log1p(band), log1p(-margin.below / value))
        up = hypot(log1p(band), log1p(margin.above / value), log1p(more))
        return Quantity(value, unit, value * exp(-down), value * exp(up), basis, note)
    size = band * abs(value)
    return Quantity(value, unit, value - hypot(size, margin.below), value + hypot(size, margin.above), basis, note)


def within_share(found: Quantity) -> Quantity:
    """A fraction's range cut to 0 and 1."""
    low, high = max(0.0, found.low), min(1.0, found.high)
    return Quantity(found.value, found.unit, min(low, found.value), max(high, found.value), found.basis, found.note)


class Uncertainty:
    """Bands and margins of one account's answers."""

    def __init__(self, account: Account) -> None:
        self.account, self.model = account, account.model
        self.stack: float = self.model.prices.rates.band
        self.slower: float = self.model.prices.rates.slower
        self.exchange = self.model.mover.even.relative if account.exchanges else 0.0

    @cached_property
    def sampling(self) -> Sampling | None:
        """What the routing samples leave unknown; None where routing is expected, or one sample cannot tell."""
        work = self.account.routed
        told = work is not None and self.account.observed.drawn and work.samples > 1
        return Sampling(self.account, work) if told and work is not None else None

    @cached_property
    def collective(self) -> tuple[Basis, float]:
        """Basis and band of collectives: fitted on the GPUs and links of their fit, else assumed."""
        fitted, gpu = law("collectives"), self.account.scenario.cluster.gpu
        valid = fitted.valid
        inside = gpu.generation in valid.get("generations", [gpu.generation])
        inside = inside and gpu.scale_up_kind in valid.get("kinds", [gpu.scale_up_kind])
        return (fitted.basis, fitted.band) if inside else ("assumed", max(fitted.band, fitted.band_elsewhere))

    @cached_property
    def laws(self) -> float:
        """Band of the step time: that of whole steps under this calibration, and what exchanges and collectives add by
        their share of the step."""
        parts, total = self.account.breakdown, self.account.step_seconds
        exchanged = parts.get("exposed dispatch", 0.0) + parts.get("exposed combine", 0.0)
        collective = parts.get("data parallel", 0.0) + parts.get("tensor and context parallel", 0.0)
        bands = (self.stack * total, self.exchange * exchanged, self.collective[1] * collective)
        relative = float(np.sqrt(np.sum(np.square(bands))) / total)
        return max(relative, self.model.prices.data["doubtful_band"]) if doubts(self.model) else relative

    @cached_property
    def part(self) -> float:
        """Band of a part of compute, which no published step tells: equally large and independent misses of the parts
        make whole steps miss by the fit's residual; away from the fit's rows all parts miss alike."""
        parts = np.array([self.account.breakdown.get(name, 0.0) for name in COMPUTED])
        # Of a user's own file, `residual` is of the steps measured.
        residual = min(self.stack, float(coefficients()["residual"]["p90"]))
        apart = residual * float(parts.sum()) / sqrt(float(np.square(parts).sum()))
        return hypot(apart, sqrt(max(0.0, self.stack**2 - residual**2)))

    @cached_property
    def steps(self) -> Margin:
        """Margin of the step's mean length by samples, and by steps where several were simulated."""
        found = EXACT if self.sampling is None else self.sampling.margin(self.sampling.step)
        seconds = np.asarray(self.account.observed.seconds)
        if len(seconds) == 1:
            return found
        among = student(len(seconds) - 1.0) * float(seconds.std(ddof=1)) / sqrt(len(seconds))
        return Margin(max(found.below, among), max(found.above, among))

    @cached_property
    def step(self) -> Quantity:
        """The step time."""
        basis = worst([*self.account.bases.values(), "assumed" if doubts(self.model) else "derived"])
        wider = ", further toward slower for a stack that no row tells" if self.slower else ""
        note = f"90 % range: laws +-{100 * self.laws:.0f} %, by residuals of calibrated cases{wider}; {self._told}"
        return ranged(self.account.step_seconds, "s", basis, note, band=self.laws, margin=self.steps, more=self.slower)

    @property
    def _told(self) -> str:
        if self.sampling is not None:
            share = max(self.steps) / self.account.step_seconds
            return f"{self.sampling.samples} routing samples +-{100 * share:.2g} %"
        if self.account.routed is None:
            return "no routing"
        return "one routing sample, which cannot tell its own" if self.account.observed.drawn else "routing expected"

    @property
    def exposed(self) -> Margin:
        """Margin of exposed communication: what waits for the busiest rank moves with the samples."""
        return EXACT if self.sampling is None else self.sampling.drawn.margin(self._exposed_moves(self.sampling))

    def exposed_share(self, exposed: float) -> Margin:
        """Margin of `exposed` seconds over the step time, which move together."""
        if self.sampling is None:
            return EXACT
        total = self.account.step_seconds
        moved = (exposed + self._exposed_moves(self.sampling)) / (total + self.sampling.step)
        return self.sampling.drawn.margin(moved - exposed / total)

    @staticmethod
    def _exposed_moves(sampling: Sampling) -> Floats:
        return sampling.own - sampling.computed
