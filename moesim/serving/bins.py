"""Stretches of iterations as time bins: what every instance did over the run.

S stretches of one instance, T bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.serving.recorder import Log

Floats = NDArray[np.float64]
BINS = 120


def binned(logs: Sequence[Log], finish: float, bins: int = BINS) -> dict[str, NDArray[Any]]:
    """One row a (instance, bin), as `moesim.columns.ITERATIONS`; a stretch across bins is split by time."""
    edges = np.linspace(0.0, max(finish, 1e-12), bins + 1)
    places: dict[str, int] = {}
    parts = []
    for log in logs:
        index = places[log.phase] = places.get(log.phase, -1) + 1
        parts.append({**_rows(log, edges), "instance": np.full(bins, index, np.int32)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(log: Log, edges: Floats) -> dict[str, NDArray[Any]]:
    """The bins [T] of one instance."""
    columns = log.columns()
    begin, end = columns["begin"], columns["end"]
    seconds = np.maximum(end - begin, 1e-300)

    def total(values: Floats) -> Floats:
        """What falls into each bin of amounts [S] spread evenly over their stretches."""
        if not len(begin):
            return np.zeros(len(edges) - 1, np.float64)
        knots = np.stack([begin, end], axis=1).ravel()
        upto = np.cumsum(values)
        reached = np.stack([upto - values, upto], axis=1).ravel()
        return np.asarray(np.diff(np.interp(edges, knots, reached)))

    busy = total(end - begin)

    def mean(values: Floats, idle: float = 0.0) -> Floats:
        """Mean over the time worked."""
        weight = total(values * seconds)
        return np.asarray(np.divide(weight, busy, out=np.full(len(busy), idle), where=busy > 0))

    iterations = total(columns["iterations"])

    def per_iteration(values: Floats) -> Floats:
        found = total(values * columns["iterations"])
        return np.asarray(np.divide(found, iterations, out=np.ones(len(busy)), where=iterations > 0))

    width = np.diff(edges)
    return {
        "time": edges[:-1],
        "seconds": width,
        "phase": np.full(len(width), log.phase, dtype=object),
        "iterations": iterations,
        "busy_fraction": np.minimum(busy / width, 1.0),
        "prefill_tokens": total(columns["prefill_tokens"]),
        "output_tokens": total(columns["output_tokens"]),
        "batch_requests": mean(columns["requests"]),
        "waiting_requests": mean(columns["waiting"]),
        "kv_cache_use": mean(columns["cached_tokens"]) / log.kv_tokens,
        "kv_cache_reserved": mean(columns["reserved_tokens"]) / log.kv_tokens,
        "rank_load_max_over_mean": per_iteration(columns["rank_peak"]),
        "rank_load_worst": _worst(begin, end, columns["rank_peak_most"], edges),
        "expert_load_max_over_mean": per_iteration(columns["expert_peak"]),
        "replica_requests_max_over_mean": mean(columns["rank_requests_peak"], 1.0),
    }


def _worst(begin: Floats, end: Floats, values: Floats, edges: Floats) -> Floats:
    """The largest value of the stretches that touch each bin; 1 where none does."""
    found = np.ones(len(edges) - 1)
    first = np.clip(np.searchsorted(edges, begin, side="right") - 1, 0, len(found) - 1)
    last = np.clip(np.searchsorted(edges, end, side="left") - 1, 0, len(found) - 1)
    for step in range(int((last - first).max(initial=-1)) + 1):
        inside = first + step <= last
        np.maximum.at(found, (first + step)[inside], values[inside])
    return found
