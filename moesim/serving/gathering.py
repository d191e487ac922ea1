"""Requests that come at random to iterations which take several at once: how many gather, and how long one waits.

While an iteration runs, prompts gather for the next one: the longer it takes, the more come together, and the longer
the next one takes. So the mean iteration is a fixed point, and an arrival falls into a longer one than the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, sqrt

import numpy as np
from scipy.special import gammainc

_ROUNDS, _CLOSE, _MOST = 100, 1e-4, 4000
_REGULAR = 0.02  # gaps as even as these are taken for more regular ones too


@dataclass(frozen=True)
class Gathered:
    """Iterations of gathered requests: mean `seconds` and requests (`together`) of one, the share of arrivals that find
    the engine `busy`, the seconds of the iteration that such an arrival `falls` into (longer ones hold more arrivals),
    and how many others come `beside` it until that one ends."""

    seconds: float
    together: float
    busy: float
    falls: float
    beside: float


def gathered(
    seconds: Callable[[float], float], rate: float, burstiness: float, most: float, variation: float = 0.0
) -> Gathered:
    """What gathers at `rate` where iterations of k requests take `seconds(k)` and hold at most `most`; `variation`:
    squared coefficient of variation of what a request is in `seconds`.

    A batch k is what came during the last, or the one request that ends an idle time. Its variance is that of arrivals
    over the time that a linear law through the mean batch gives: that of k in a mean time over 1 - (rate x slope)^2.
    """
    found = seconds(1.0)
    for _ in range(_ROUNDS):
        together = min(max(rate * found + exp(-rate * found), 1.0), most)
        wanted = seconds(together)
        if abs(wanted - found) <= _CLOSE * found:
            break
        found = 0.5 * (found + wanted)
    mean, none = rate * found, exp(-rate * found)
    together = min(max(mean + none, 1.0), most)
    spread = max(burstiness * mean + mean**2 + none - (mean + none) ** 2, 0.0) + together * variation
    fewer, more = max(0.8 * together, 1.0), max(min(1.2 * together, most), 1.0)
    slope = (seconds(more) - seconds(fewer)) / (more - fewer) if more > fewer else 0.0
    variance = spread / max(1.0 - (rate * slope) ** 2, 0.1)
    falls = min(found * (1.0 + min(slope**2 * variance / found**2, 1.0 + variation)), max(seconds(most), found))
    busy = min(rate * found / together, 1.0)
    return Gathered(found, together, busy, falls, 2.0 * near(rate, burstiness, falls / 2))


def near(rate: float, burstiness: float, seconds: float) -> float:
    """Arrivals expected within so many seconds behind an arrival, of gamma gaps whose squared coefficient of variation
    is `burstiness`: the renewal function, rate x seconds where that is 1."""
    if burstiness == 1.0 or not rate:
        return rate * seconds
    shape = 1.0 / max(burstiness, _REGULAR)
    reach = shape * rate * seconds
    count = min(ceil((reach + 10.0 * sqrt(reach) + 10.0) / shape), _MOST)
    return float(gammainc(shape * np.arange(1, count + 1), reach).sum())


def queue(use: float, servers: float, variation: float) -> float:
    """Mean waiting for one of `servers`, over the time that all of them together need for a request: Sakasegawa's law
    of many servers (1977), with Kingman's factor `variation`, the mean of the two squared coefficients of variation.
    One server: variation x use / (1 - use)."""
    return float(variation * use ** (sqrt(2.0 * (servers + 1.0)) - 1.0) / max(1.0 - use, 1e-9))
