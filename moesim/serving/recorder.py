"""What a run writes down: a row a stretch of like iterations, and the times of every request.

Q requests, S stretches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.serving.requests import Requests

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRETCH = (
    "begin",
    "end",
    "iterations",
    "prefill_tokens",
    "output_tokens",
    "requests",
    "waiting",
    "cached_tokens",
    "reserved_tokens",
    "rank_peak",
    "rank_peak_most",
    "expert_peak",
    "rank_requests_peak",
    "prefill_pairs",
    "decoders",
    "decode_context",
)
"""Columns of a stretch: seconds; iterations, prompt and output tokens in all; requests in the batch (those that decode,
held up by prompts or not, and those whose prompts are computed), requests waiting, tokens in the KV cache and reserved
there; max/mean rows over expert-parallel ranks (mean and most over the iterations) and over experts; max/mean of
requests over attention replicas; token pairs of prompts in all; requests that the iterations decode and their context,
mean over the iterations."""


@dataclass
class Log:
    """One engine's stretches; `wanted` experts of all its decode iterations and layers, and those of them `fetched`
    from host memory."""

    name: str
    phase: str
    kv_tokens: int
    rows: list[tuple[float, ...]] = field(default_factory=list)
    wanted: float = 0.0
    fetched: float = 0.0

    def add(self, *row: float) -> None:
        """One stretch, in the order of `STRETCH`."""
        self.rows.append(row)

    def columns(self) -> dict[str, Floats]:
        """Stretches as columns [S]."""
        table = np.array(self.rows, np.float64).reshape(-1, len(STRETCH))
        return dict(zip(STRETCH, table.T, strict=True))


class Times:
    """When what happened to every request; NaN where it has not. `ended` counts how often each ended."""

    def __init__(self, requests: Requests) -> None:
        count = requests.count
        self.arrival = requests.arrival.copy() if requests.concurrency is None else np.full(count, np.nan)
        self.begin, self.prefilled, self.first, self.end = (np.full(count, np.nan) for _ in range(4))
        self.transfer = np.zeros(count)
        self.prefill_instance = np.full(count, -1, np.int64)
        self.decode_instance = np.full(count, -1, np.int64)
        self.ended = np.zeros(count, np.int64)


def check_conservation(requests: Requests, times: Times, logs: list[Log]) -> None:
    """Every request arrived, was answered and ended exactly once, in this order; no token was lost or made up; no KV
    cache held more than it has room for. Raises `InternalError` where one does not hold."""
    if not (times.ended == 1).all():
        wrong = int(np.flatnonzero(times.ended != 1)[0])
        raise InternalError(f"request {wrong} ended {times.ended[wrong]} times")
    order = np.stack([times.arrival, times.begin, times.first, times.end])
    if not (np.diff(order, axis=0) >= -1e-9 * np.maximum(1.0, times.end)).all():
        raise InternalError("a request's times are out of order")
    columns = [log.columns() for log in logs]
    emitted = sum(float(column["output_tokens"].sum()) for column in columns)
    computed = sum(float(column["prefill_tokens"].sum()) for column in columns)
    asked = float(requests.output_tokens.sum())
    prompts = float((requests.input_tokens - requests.cached).sum())
    if abs(emitted - asked) > 1e-6 * asked or abs(computed - prompts) > 1e-6 * max(prompts, 1.0):
        raise InternalError(
            f"{emitted:,.1f} tokens came out where {asked:,.0f} were asked, {computed:,.1f} of {prompts:,.0f} went in"
        )
    for log, column in zip(logs, columns, strict=True):
        held = np.maximum(column["reserved_tokens"], column["cached_tokens"] / 1.000001)
        if (held > log.kv_tokens).any():
            raise InternalError(f"{log.name} held more than its KV cache has room for")
