"""What comes to a deployment, in means: request lengths, rate or concurrency, and how bursty it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.scenario.serving import ServingScenario
from moesim.serving.requests import draw_requests
from moesim.specs.serving import LengthsSpec, ServingWorkload

Floats = NDArray[np.float64]
_SIZES = 400
_SHARES = (np.arange(_SIZES) + 0.5) / _SIZES
_EDGES = np.arange(_SIZES + 1) / _SIZES
_NORMAL = np.array([NormalDist().inv_cdf(float(share)) for share in _SHARES])


@dataclass(frozen=True, eq=False)
class Demand:
    """Mean tokens of a request: `prompt`, of which `cached` are there already, and `output`. `rate` in requests a
    second, or a `concurrency` that is kept. `burstiness`: squared coefficient of variation of the gaps between
    arrivals; `sizes` [400]: prompts over the mean prompt, ascending, each equally likely. `in_step`: the
    requests of a loop have equally many output tokens, so that they end together."""

    prompt: float
    cached: float
    output: float
    rate: float
    concurrency: int | None
    burstiness: float
    sizes: Floats
    in_step: bool = False

    @property
    def new(self) -> float:
        """Prompt tokens that are computed."""
        return max(1.0, self.prompt - self.cached)

    @property
    def prompt_variation(self) -> float:
        """Squared coefficient of variation of prompt tokens."""
        return float(np.square(self.sizes).mean()) - 1.0

    def largest(self, prompts: float) -> float:
        """Expected new tokens of the largest of so many prompts."""
        return self.new * float(self.sizes @ np.diff(_EDGES**prompts))


def demand_of(scenario: ServingScenario) -> Demand:
    """The means of the scenario's workload; those of a trace are its rows'."""
    work = scenario.workload
    if work.arrivals.kind == "trace":
        return _traced(work, scenario.simulation.seed)
    if work.input_tokens is None:
        raise InternalError("checked requests have lengths")
    prompt = work.input_tokens.average
    output = work.output_tokens.average if work.output_tokens is not None else 1.0
    arrivals = work.arrivals
    return Demand(
        prompt=prompt,
        cached=_cached(work, prompt),
        output=1.0 if work.kind == "prefill" else output,
        rate=arrivals.rate or 0.0,
        concurrency=arrivals.concurrency,
        burstiness=arrivals.burstiness or 1.0,
        sizes=_over_mean(_quantiles(work.input_tokens)),
        in_step=work.in_step,
    )


def _quantiles(spec: LengthsSpec) -> Floats:
    """Token counts [400], ascending, each equally likely."""
    if spec.low is not None and spec.high is not None:
        return np.asarray(spec.low + (spec.high - spec.low) * _SHARES)
    if not spec.deviation:
        return np.full(_SIZES, spec.average)
    location, scale = spec.log_normal
    return np.asarray(np.exp(location + scale * _NORMAL))


def _over_mean(sizes: Floats) -> Floats:
    return np.asarray(sizes / sizes.mean())


def _cached(work: ServingWorkload, prompt: float) -> float:
    return prompt if work.kind == "decode" else min(float(floor(prompt * work.prefix_cache_share)), prompt - 1.0)


def _traced(work: ServingWorkload, seed: int) -> Demand:
    """Means of a trace; one whose requests come all at once is a loop that they fill."""
    drawn = draw_requests(work, Streams(seed))
    prompt, gaps = float(drawn.input_tokens.mean()), drawn.arrival[1:] - drawn.arrival[:-1]
    mean = float(gaps.mean()) if len(gaps) else 0.0
    return Demand(
        prompt=prompt,
        cached=float(drawn.cached.mean()),
        output=float(drawn.output_tokens.mean()),
        rate=1.0 / mean if mean else 0.0,
        concurrency=None if mean else drawn.count,
        burstiness=float(gaps.var()) / mean**2 if mean else 1.0,
        sizes=_over_mean(np.quantile(drawn.input_tokens, _SHARES)),
    )
