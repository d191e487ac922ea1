"""The bootstrap over routing samples: how far a mean over a whole run may be from the mean of the samples drawn.

The S samples of each layer are drawn again with replacement, B times, and every mean is taken anew (Efron, Annals of
Statistics 7, 1979, percentile ranges). Samples whose sequences all layers share are drawn again as whole microbatches,
for they differ together. Few samples understate their own spread; the factor sqrt(S / (S - 1)) and Student's t in place
of the normal law mend that. Left out: other popularities of the experts than the one that `routing.seed` draws.
L MoE layers, S routing samples, B resamplings, P pipeline ranks.
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.results.account import Account
from moesim.scenario.scenario import Scenario
from moesim.step.layout import chunks_on
from moesim.step.routed import RoutedWork

Floats = NDArray[np.float64]
RESAMPLINGS, FEWEST, MOST_COUNTS = 300, 60, 1 << 22
TAILS = (0.05, 0.95)


class Margin(NamedTuple):
    """How far below and above a value the mean of a run lies in nine cases of ten."""

    below: float
    above: float

    def times(self, factor: float) -> Margin:
        """The margin of the value times a positive factor."""
        return Margin(self.below * factor, self.above * factor)


EXACT = Margin(0.0, 0.0)


class Resamples:
    """B resamplings of the samples of L layers; `together`: the same samples in all layers."""

    def __init__(self, layers: int, samples: int, generator: np.random.Generator, *, together: bool) -> None:
        times = max(FEWEST, min(RESAMPLINGS, MOST_COUNTS // (layers * samples)))
        drawn = generator.integers(samples, size=(1 if together else layers, times, samples))
        rows = np.arange(drawn.shape[0] * times).reshape(drawn.shape[:2])
        counts = np.bincount((rows[..., None] * samples + drawn).ravel(), minlength=drawn.size)
        self.shares = counts.reshape(drawn.shape) / samples
        self.independent = (samples - 1) * (1 if together else layers)

    def by_layer(self, values: Floats) -> Floats:
        """How far the mean of each layer's values [L, S] moves in every resampling [L, B]."""
        centred = values - values.mean(axis=1, keepdims=True)
        return np.asarray(np.matmul(self.shares, centred[:, :, None])[..., 0])

    def margin(self, moves: Floats, independent: float | None = None) -> Margin:
        """The margin of an answer that moves so far in the resamplings [B].

        An answer that all resamplings move to one side on average, as a maximum, is off to that side itself.
        `independent`: differences between samples that it rests on, where not all.
        """
        low, high = np.quantile(moves - 2.0 * moves.mean(), TAILS)
        samples, free = self.shares.shape[-1], max(1.0, self.independent if independent is None else independent)
        wider = sqrt(samples / (samples - 1)) * student(free) / student(float("inf"))
        return Margin(wider * max(0.0, -float(low)), wider * max(0.0, float(high)))


def student(free: float) -> float:
    """The 95th percentile of Student's t with `free` degrees of freedom (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(TAILS[1])
    if free == 1.0:
        return 6.3138
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / free**power for power, term in enumerate(terms, 1)))


def layers_share_sequences(scenario: Scenario) -> bool:
    """Whether a sample is the same sequences in every layer, so that its layers differ from the mean together."""
    load, router = scenario.routing.load, scenario.model.router
    return bool(load.fitted or load.trace or load.tenants or router.tasks)


class Sampling:
    """What the routing samples of a simulated step leave unknown of its metrics, B moves of each."""

    def __init__(self, account: Account, work: RoutedWork) -> None:
        self.account, self.work = account, work
        layers, self.samples = work.rows.shape[:2]
        generator = Streams(account.scenario.simulation.seed).generator("summary/resampling")
        self.drawn = Resamples(layers, self.samples, generator, together=layers_share_sequences(account.scenario))

    def mean(self, values: Floats) -> Margin:
        """The margin of the mean over layers and samples of values [L, S]."""
        return self.drawn.margin(self.drawn.by_layer(values).mean(axis=0))

    def share(self, values: Floats) -> Margin:
        """The same in parts of the sum over passes: the relative margin of what adds up over layers."""
        passes = self.account.passes
        whole = float(passes @ values.mean(axis=1))
        return self.drawn.margin(self._summed(values)).times(1.0 / whole) if whole > 0 else EXACT

    def ratio(self, parts: Floats, wholes: Floats) -> Margin:
        """The margin of the sum of `parts` [L, S] over that of `wholes`."""
        part, whole = parts.mean(axis=1).sum(), wholes.mean(axis=1).sum()
        moved = (part + self.drawn.by_layer(parts).sum(axis=0)) / (whole + self.drawn.by_layer(wholes).sum(axis=0))
        return self.drawn.margin(moved - part / whole)

    @cached_property
    def computed(self) -> Floats:
        """Seconds [B] by which the experts' compute of the mean rank moves."""
        return self.account.uses * self._summed(self._expert_seconds.mean(axis=-1))

    @cached_property
    def own(self) -> Floats:
        """Seconds [B] by which the mean pipeline rank's own work moves, waiting within its group included."""
        return self.account.uses * self._summed(self._longest)

    @cached_property
    def step(self) -> Floats:
        """Seconds [B] by which the step moves: with its busiest pipeline rank, and by one microbatch of the others, for
        whose fill and drain it waits."""
        model, batches = self.account.model, self.account.scenario.microbatches
        apart = self._longest - self._expert_seconds.mean(axis=-1)
        held = self._held
        fixed = np.array([sum(seconds) for seconds in model.compute_seconds]) + held @ apart.mean(axis=1)
        moves = held @ self.drawn.by_layer(self._longest)
        moved = fixed[:, None] + moves
        busiest = np.asarray(moved.max(axis=0) - fixed.max())
        others = moves.sum(axis=0) - moves[moved.argmax(axis=0), np.arange(moves.shape[1])]
        return np.asarray(batches * busiest + others)

    def margin(self, moves: Floats) -> Margin:
        """The margin of an answer that moves with the busiest pipeline rank, so with that rank's layers alone."""
        spread = self.drawn.independent / max(1, self.account.scenario.parallelism.pipeline)
        return self.drawn.margin(moves, spread if not layers_share_sequences(self.account.scenario) else None)

    def _summed(self, values: Floats) -> Floats:
        return np.asarray(self.account.passes @ self.drawn.by_layer(values))

    @cached_property
    def _expert_seconds(self) -> Floats:
        """A microbatch's experts, all phases, on each rank [L, S, R]."""
        work = self.work
        return np.asarray(self.account.forwards * work.forward + work.backward + work.weight)

    @cached_property
    def _longest(self) -> Floats:
        """Seconds [L, S] that a layer takes its group: the busiest rank's experts and the exchanges not hidden."""
        exchanged = (self.account.forwards + 1.0) * (self.work.dispatch.busiest + self.work.combine.busiest)
        slowest, mean = self._expert_seconds.max(axis=-1), self._expert_seconds.mean(axis=-1)
        waited = sum(self.account.observed.waited.get(kind, 0.0) for kind in ("dispatch", "combine"))
        uses, passes = self.account.uses, self.account.passes
        straggling = uses * float(passes @ (slowest - mean).mean(axis=1))
        whole = uses * float(passes @ exchanged.mean(axis=1))
        seen = min(1.0, max(0.0, (waited - straggling) / whole)) if whole > 0 else 0.0
        return np.asarray(slowest + seen * exchanged)

    @cached_property
    def _held(self) -> Floats:
        """How often a microbatch passes each layer on each pipeline rank [P, L]."""
        model, scenario = self.account.model, self.account.scenario
        held = np.zeros((scenario.parallelism.pipeline, len(model.moe_index)))
        # A DualPipe rank holds two chunks, and a microbatch passes only one of them there.
        share = 0.5 if scenario.schedule_kind == "dualpipe" else 1.0
        last = scenario.model.layers - 1
        for rank, row in enumerate(held):
            for chunk in (model.chunks[index] for index in chunks_on(scenario, rank)):
                layers = [*chunk.layers, *[last] * chunk.mtp_layers]
                for place in [model.moe_index[layer] for layer in layers if layer in model.moe_index]:
                    row[place] += share
        return held
