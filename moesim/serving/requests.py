"""The requests of a run: when each comes, how many tokens it brings and how many it asks for.

Q requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError, UserError
from moesim.randomness import Streams
from moesim.serving.trace_file import read_trace
from moesim.specs.serving import ArrivalsSpec, LengthsSpec, ServingWorkload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LONGEST = 1 << 24


@dataclass(frozen=True)
class Requests:
    """`arrival` [Q] seconds, ascending; of a closed loop all 0, for there the next comes when one of `concurrency`
    ends. `cached` [Q]: prompt tokens whose KV cache is there already; at least one token of a prompt is computed."""

    arrival: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached: Ints
    concurrency: int | None = None

    @property
    def count(self) -> int:
        """Q."""
        return len(self.arrival)


def draw_requests(workload: ServingWorkload, streams: Streams) -> Requests:
    """The requests of a workload; each of gaps, prompts and outputs has a stream of its own.

    Gaps are drawn for a rate of one and divided by the rate, so that runs at several rates see the same requests.
    A trace gives times and tokens itself: its first `requests` rows. Raises `FileError` where it cannot be read.
    """
    if workload.arrivals.kind == "trace":
        arrival, prompts, outputs = _traced(workload)
    else:
        count = workload.requests
        arrival = _arrivals(workload.arrivals, count, streams)
        prompts = lengths(workload.input_tokens, count, streams.generator("serving/input"), "input_tokens")
        if workload.kind == "prefill" and workload.output_tokens is None:
            outputs = np.ones(count, np.int64)
        else:
            outputs = lengths(workload.output_tokens, count, streams.generator("serving/output"), "output_tokens")
    if workload.kind == "prefill":
        outputs = np.ones_like(outputs)
    cached = np.minimum(np.floor(prompts * workload.prefix_cache_share).astype(np.int64), prompts - 1)
    if workload.kind == "decode":
        cached = prompts.copy()
    return Requests(arrival, prompts, outputs, cached, workload.arrivals.concurrency)


def _arrivals(spec: ArrivalsSpec, count: int, streams: Streams) -> Floats:
    """Arrival times [Q]: exponential or gamma gaps; all at once in a closed loop."""
    if spec.kind == "closed":
        return np.zeros(count)
    if spec.rate is None:
        raise InternalError(f"{spec.kind} arrivals without a rate")
    generator = streams.generator("serving/arrivals")
    if spec.kind == "poisson":
        gaps = generator.standard_exponential(count)
    else:
        spread = float(spec.burstiness or 1.0)
        gaps = generator.standard_gamma(1.0 / spread, count) * spread
    return np.cumsum(gaps) / spec.rate


def lengths(spec: LengthsSpec | None, count: int, generator: np.random.Generator, name: str = "tokens") -> Ints:
    """Token counts [Q] of at least 1: the same for all, log-normal, or uniform."""
    if spec is None:
        raise UserError(f"workload.{name} is absent: give a number, {{mean, deviation}}, or {{low, high}}")
    if spec.low is not None and spec.high is not None:
        drawn = generator.uniform(spec.low - 0.5, spec.high + 0.5, count)
    elif spec.deviation:
        location, scale = spec.log_normal
        drawn = np.exp(location + scale * generator.standard_normal(count))
    else:
        drawn = np.full(count, spec.average)
    return np.clip(np.rint(drawn), 1, LONGEST).astype(np.int64)


def _traced(workload: ServingWorkload) -> tuple[Floats, Ints, Ints]:
    """The first rows of the trace file, in order of time."""
    path = workload.arrivals.path
    if path is None:
        raise InternalError("trace arrivals without a path")
    arrival, prompts, outputs = read_trace(Path(path))
    first = slice(0, workload.requests)
    return arrival[first], prompts[first], outputs[first]
