"""The compiled closed form of a fitted law: how often a sequence's tokens choose each expert, and how that varies.

L layers, E experts, W classes.

An expert is chosen with chance a = 1 - exp(-tau w) where the earlier token had it not, b = 1 - exp(-tau w (1 + beta))
where it had it: a chain of two states, at rest at p = a / (1 - b + a) (a, b averaged over classes). tau is that of each
class with p b + (1 - p) a summing up to K over the experts.
"""

from __future__ import annotations

import numpy as np

from moesim.routing._kernels import Floats, compiled

ROUNDS, STEPS = 8, 1
NEAR = 1e-3


@compiled
def class_chances(
    weight: Floats, chance: Floats, beta: float, wanted: float, tau: float, alone: Floats, again: Floats
) -> float:
    """tau of one class from the one before, and both chances [E] of each expert."""
    E, most = weight.size, wanted
    for _ in range(STEPS):
        total, rise = 0.0, 0.0
        for e in range(E):
            rate = tau * weight[e]
            missed = np.exp(-rate)
            twice = np.exp(-rate * (1.0 + beta)) if beta > 0.0 else missed
            alone[e], again[e] = 1.0 - missed, 1.0 - twice
            total += chance[e] * again[e] + (1.0 - chance[e]) * alone[e]
            rise += weight[e] * (chance[e] * (1.0 + beta) * twice + (1.0 - chance[e]) * missed)
        step = (most - total) / max(rise, 1e-300)
        tau = tau + step if tau + step > 0.0 else tau / 2.0
    return tau


@compiled
def sequence_chances(
    affinity: Floats, tilt: Floats, share: Floats, width: Floats, repeat: Floats
) -> tuple[Floats, Floats]:
    """Chance [L, E] of a token to choose each expert, and the variance of a long count over that of independent tokens
    [L, E]; of log weights affinity [L, W, E] and tilt [L, E], shares [W], `width` [L] experts a token."""
    L, W, E = affinity.shape
    chances, excess = np.empty((L, E)), np.empty((L, E))
    weight, tau = np.empty((W, E)), np.empty(W)
    alone, again, one, two = np.empty(E), np.empty(E), np.empty(E), np.empty(E)
    for l in range(L):
        wanted, top = min(width[l], E * (1.0 - 1e-6)), (affinity[l] + tilt[l]).max()
        for c in range(W):
            total = 0.0
            for e in range(E):
                weight[c, e] = np.exp(affinity[l, c, e] + tilt[l, e] - top)
                total += weight[c, e]
            tau[c] = wanted / max(total, 1e-300)
        chance = np.full(E, wanted / E)
        for _ in range(ROUNDS):
            alone[:] = 0.0
            again[:] = 0.0
            for c in range(W):
                if share[c] > 0.0:
                    tau[c] = class_chances(weight[c], chance, repeat[l], wanted, tau[c], one, two)
                    for e in range(E):
                        alone[e] += share[c] * one[e]
                        again[e] += share[c] * two[e]
            moved, total = 0.0, 0.0
            for e in range(E):
                rest = alone[e] / max(1.0 - again[e] + alone[e], 1e-12)
                moved = max(moved, abs(rest - chance[e]))
                chance[e] = rest
                total += rest
            for e in range(E):
                chance[e] = min(chance[e] * wanted / max(total, 1e-12), 1.0)
            if moved < NEAR:
                break
        for e in range(E):
            tie = min(max(again[e] - alone[e], 0.0), 0.99)
            chances[l, e] = chance[e]
            excess[l, e] = (1.0 + tie) / (1.0 - tie)
    return chances, excess
