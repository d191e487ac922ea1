"""The order of experts inside a token's set: a race of their weights to a power, times a factor of each expert.

N tokens, K choices, E experts. Successive choices among those that are left (Plackett and Luce), by Newton's steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Names = NDArray[np.uint16]

ROUNDS = 20
PRIOR = 4.0
MOST = 5.0
AWAY = -1e30


def fit_order(choices: Names, logs: Floats, experts: int) -> tuple[float, Floats]:
    """Power and log factors [E] from choices [N, K], best first, E for none, of log weights [N, K]."""
    power, factor = 1.0, np.zeros(experts + 1)
    there = choices < experts
    for _ in range(ROUNDS):
        slope, bend = 0.0, 1.0
        pull, stiff = np.zeros(experts + 1), np.full(experts + 1, PRIOR)
        score = np.where(there, power * logs + factor[choices], AWAY)
        for k in range(choices.shape[1] - 1):
            open_ = there[:, k]
            left = score[open_, k:]
            if not len(left):
                continue
            chance = np.exp(left - left.max(axis=1, keepdims=True))
            chance /= chance.sum(axis=1, keepdims=True)
            value = np.where(there[open_, k:], logs[open_, k:], 0.0)
            mean = (chance * value).sum(axis=1)
            slope += float((value[:, 0] - mean).sum())
            bend += float((chance * (value - mean[:, None]) ** 2).sum())
            names = choices[open_, k:].ravel()
            pull += np.bincount(choices[open_, k], minlength=experts + 1)
            pull -= np.bincount(names, weights=chance.ravel(), minlength=experts + 1)
            stiff += np.bincount(names, weights=(chance * (1.0 - chance)).ravel(), minlength=experts + 1)
        power = float(np.clip(power + 0.5 * slope / bend, 0.0, MOST))
        factor = np.clip(factor + 0.5 * (pull - PRIOR * factor) / stiff, -MOST, MOST)
        factor[experts] = 0.0
    return power, factor[:experts]
