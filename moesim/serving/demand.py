"""What comes to a deployment, in means: request lengths, rate or concurrency, and how bursty it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.scenario.serving import ServingScenario
from moesim.serving.requests import draw_requests
from moesim.specs.serving import ServingWorkload


@dataclass(frozen=True)
class Demand:
    """Mean tokens of a request: `prompt`, of which `cached` are there already, and `output`. `rate` in requests a
    second, or a `concurrency` that is kept. `burstiness`: squared coefficient of variation of the gaps between
    arrivals, `prompt_variation` that of prompt tokens."""

    prompt: float
    cached: float
    output: float
    rate: float
    concurrency: int | None
    burstiness: float
    prompt_variation: float

    @property
    def new(self) -> float:
        """Prompt tokens that are computed."""
        return max(1.0, self.prompt - self.cached)


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
        prompt_variation=work.input_tokens.variance / prompt**2,
    )


def _cached(work: ServingWorkload, prompt: float) -> float:
    return prompt if work.kind == "decode" else min(float(floor(prompt * work.prefix_cache_share)), prompt - 1.0)


def _traced(work: ServingWorkload, seed: int) -> Demand:
    drawn = draw_requests(work, Streams(seed))
    prompt, gaps = float(drawn.input_tokens.mean()), drawn.arrival[1:] - drawn.arrival[:-1]
    mean = float(gaps.mean()) if len(gaps) else 1.0
    return Demand(
        prompt=prompt,
        cached=float(drawn.cached.mean()),
        output=float(drawn.output_tokens.mean()),
        rate=1.0 / max(mean, 1e-9),
        concurrency=None,
        burstiness=float(gaps.var()) / max(mean, 1e-9) ** 2 if len(gaps) else 1.0,
        prompt_variation=float(drawn.input_tokens.var()) / prompt**2,
    )
