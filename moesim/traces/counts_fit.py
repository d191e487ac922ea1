"""A simple law from counts by expert, where no token's own choices are known: the spread of popularity, layer by layer.

N rows, L layers, E experts, K choices, D domains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from moesim.errors import UserError
from moesim.routing.inclusion import inclusion, rates
from moesim.traces.counts import RouterCounts

Floats = NDArray[np.float64]
FEWEST, MOST, BISECTIONS = 20.0, 5.0, 30


def fit_counts(counts: RouterCounts) -> dict[str, Any]:
    """An entry for the catalog's `profiles`: `log_normal` over the layers, and what domains add as `sequence_tilt`.

    A layer's value gives its loads' coefficient of variation, that of counting taken off: what hot experts weigh
    counts, more than how rare the rarest is. `log_normal` runs from the first to the last layer by a straight line; a
    sequence is at least as uneven as its domain, so that the tilt is a lower bound, and assumed. Raises UserError where
    the counts are too few to tell spread from noise.
    """
    by_layer = spread_of(counts.total.astype(np.float64), counts.meta.top_k)
    if counts.total.sum(axis=-1).min() < FEWEST * counts.meta.experts:
        raise UserError(f"too few counts: {FEWEST:.0f} copies an expert and layer are the least that tells spread")
    depth = np.linspace(-0.5, 0.5, by_layer.size)
    slope, middle = np.polyfit(depth, by_layer, 1) if by_layer.size > 1 else (0.0, by_layer[0])
    ends = np.clip([middle - slope / 2, middle + slope / 2], 0.0, MOST).round(3).tolist()
    tilt = _tilt(counts)
    where = f"counts of {counts.meta.model or counts.meta.source or 'a recording'}"
    return {
        "log_normal": ends,
        "sequence_tilt": round(tilt, 3),
        "domains": [name for name in counts.meta.domains if name],
        "note": f"{int(counts.total[0].sum()):,} copies a layer, {by_layer.size} layers;"
        " no sequences were recorded: the tilt is that of domains, a lower bound",
        "sources": {
            "": {"basis": "fitted", "where": where},
            "sequence_tilt": {"basis": "assumed", "where": f"between the domains of the {where}"},
        },
    }


def spread_of(counts: Floats, top_k: int) -> Floats:
    """Deviation of log weights [L] whose loads vary as counts [L, E] do: E equally likely parts of a normal law."""
    experts, mean = counts.shape[-1], counts.mean(axis=-1)
    wanted = np.sqrt(np.maximum(counts.var(axis=-1) - mean, 0.0)) / mean
    parts = ndtri((np.arange(experts) + 0.5) / experts)
    low, high = np.zeros(len(counts)), np.full(len(counts), MOST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        load = inclusion(np.exp(middle[:, None] * parts), top_k)
        less = load.std(axis=-1) / load.mean(axis=-1) < wanted
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return np.asarray((low + high) / 2)


def _log_rates(counts: Floats, top_k: int) -> tuple[Floats, Floats]:
    """Log rates [..., E] of the race that gives these counts, and the variance that counting adds."""
    seen = np.maximum(counts, 0.5)
    tokens = seen.sum(axis=-1, keepdims=True) / top_k
    return np.log(rates(seen / tokens)), 1.0 / seen


def _tilt(counts: RouterCounts) -> float:
    """How far domains are from each other: standard deviation of an expert's log rate over domains."""
    domains = np.unique(counts.domain)
    if domains.size < 2:
        return 0.0
    each = np.stack([counts.counts[counts.domain == domain].sum(axis=0) for domain in domains]).astype(np.float64)
    logs, noise = _log_rates(each, counts.meta.top_k)
    logs = logs - logs.mean(axis=-1, keepdims=True)
    return float(np.sqrt(max(0.0, logs.var(axis=0, ddof=1).mean() - noise.mean())))
