"""Expected waiting for spare hosts, in closed form, from the first day on, when every host is healthy.

On the clock of work alone, which stands still while training waits, hosts in repair are a loss system of `spares`
servers: a failure takes one, its repair frees it. One that finds them all taken waits for the first of spares + 1
repairs and leaves the system as it found it, so that waits come at the failure rate times the share of time in which
all spares are taken. Repairs are exponential here; failures come evenly while training works, restarts included.

n = spares + 1 states, by hosts in repair.
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MOST_STATES = 41
"""States of which the chain is solved; with more its blocking follows the load that has built up by then."""
_HALVINGS, _BEYOND = 16, 20.0
"""Doublings of the chain's time step; standard deviations of a load beyond which spares are never all taken."""
_MOMENTS, _SETTLED = 256, 12.0
"""Points in time at which a built-up load is looked at, and the repair times after which it is steady."""


def blocked_share(servers: int, offered: ArrayLike) -> Floats:
    """Share of time in which all of `servers` are taken (Erlang's loss formula, any distribution of service time)."""
    load = np.asarray(offered, dtype=np.float64)
    share = np.ones_like(load)
    for count in range(1, servers + 1):
        share = load * share / (count + load * share)
    return share


def spare_waits(spares: int, rate: float, repair: float, seconds: float) -> tuple[float, float]:
    """Mean and variance of the seconds waited in `seconds` of work with `rate` failures a second."""
    mean_wait = repair / (spares + 1)
    offered = rate * repair
    if not offered or spares > offered + _BEYOND * (1 + offered**0.5):
        return 0.0, 0.0
    if spares < MOST_STATES:
        return _solved(spares, rate, repair, seconds)
    steady, variance = _steady(spares, rate, repair)
    built_up = _built_up_share(spares, offered, seconds / repair)
    return rate * mean_wait * built_up * seconds, variance * seconds * (built_up / steady if steady else 0.0)


def _solved(spares: int, rate: float, repair: float, seconds: float) -> tuple[float, float]:
    """The chain's own moments: first m and second s of the wait from each state solve m' = Q m + r and s' = Q s + 2 u m
    + v, where r, u and v (rate times the wait's moments) stand at the last state alone; by 2^16 implicit steps."""
    n, mean_wait = spares + 1, repair / (spares + 1)
    hosts = np.arange(n)
    moves = np.diag(np.full(spares, rate), 1) + np.diag(hosts[1:] / repair, -1)
    moves -= np.diag(moves.sum(axis=1))
    system = np.zeros((2 * n + 1, 2 * n + 1))
    system[:n, :n] = system[n:-1, n:-1] = moves
    last, one = n - 1, 2 * n
    system[last, one] = rate * mean_wait
    system[n + last, last] = 2 * rate * mean_wait
    system[n + last, one] = 2 * rate * mean_wait**2
    step = np.linalg.inv(np.eye(2 * n + 1) - system * (seconds / 2**_HALVINGS))
    found = np.linalg.matrix_power(step, 2**_HALVINGS)[:, one]
    mean = max(0.0, float(found[0]))  # rounding can leave a tiny negative where no spare is ever missed
    return mean, max(0.0, float(found[n]) - mean**2)


def _steady(spares: int, rate: float, repair: float) -> tuple[float, float]:
    """Share of time with every spare taken, and variance of the waits a second of work, long after the start: that of
    single waits, and that of the time spent in the last state (Whitt 1992, "Asymptotic formulas for Markov processes",
    Operations Research 40(2), for birth and death)."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(rate * repair / np.arange(1, spares + 1)))))
    chance = np.exp(logs - logs.max())
    chance /= chance.sum()
    full, below = float(chance[-1]), np.cumsum(chance)[:-1]
    if not full:
        return 0.0, 0.0
    clustered = 2 * full**2 * float(np.sum(below * (below / np.maximum(chance[:-1], 1e-300)))) / rate
    mean_wait = repair / (spares + 1)
    return full, 2 * rate * full * mean_wait**2 + (rate * mean_wait) ** 2 * clustered


def _built_up_share(spares: int, offered: float, length: float) -> float:
    """Mean share of time with every spare taken, over `length` repair times from the start: Erlang's for the load that
    has built up at each moment (modified offered load, Jagerman 1975), or where it is larger that of a fluid, which
    is nothing until it fills all spares."""
    settled = min(length, _SETTLED)
    places = (np.arange(_MOMENTS) + 0.5) / _MOMENTS  # squared: denser at the start
    share = blocked_share(spares, offered * -np.expm1(-settled * places**2))
    steady = float(blocked_share(spares, offered))
    found = (float(share @ places) * 2 * settled / _MOMENTS + steady * (length - settled)) / length
    if offered <= spares:
        return found
    spilt = 1 - spares / offered
    return max(found, spilt * (length + log(spilt)) / length)
