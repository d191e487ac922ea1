"""Auxiliary losses of routers, before their coefficients: what training minimises to even out the load.

T tokens, E experts, K choices, D devices, S sequences.
"""

from __future__ import annotations

import math

import numpy as np

from moesim.errors import UserError
from moesim.routing.assignment import NO_EXPERT
from moesim.routing.routers.base import Floats, Integers
from moesim.routing.routers.scores import numbered, renormalized

_ERFC = np.frompyfunc(math.erfc, 1, 1)


def load_balancing_loss(probabilities: Floats, experts: Integers) -> float:
    """E x sum of f_i P_i: Switch's loss, and GShard's but for the factor E^2 that its mean over experts leaves out.

    f is each expert's share of the copies of `experts` [T, K] (GShard gives it the first choices [T, 1] alone), P its
    mean of the `probabilities` [T, E]. 1 where both are even, E at collapse.
    """
    return float(probabilities.shape[1] * (_shares(experts, probabilities.shape[1]) * probabilities.mean(axis=0)).sum())


def cv_squared(values: Floats) -> float:
    """Squared coefficient of variation, of the whole population: (standard deviation / mean)^2; 0 of nothing."""
    mean = float(np.mean(values))
    return float(np.var(values)) / mean**2 if mean else 0.0


def importance_loss(gates: Floats) -> float:
    """CV^2 of the experts' importance, the sums of their `gates` [T, E] (0 where not chosen); Shazeer et al. 2017,
    equation 7."""
    return cv_squared(gates.sum(axis=0))


def load_loss(clean: Floats, noisy: Floats, deviation: float, top_k: int) -> float:
    """CV^2 of the experts' smooth load: the chance that each is among the K best if its own noise is drawn again.

    `clean` and `noisy` logits [T, E]; `deviation` of the noise. Shazeer et al. 2017, equations 8-11.
    """
    E = clean.shape[1]
    if not 1 <= top_k < E:
        raise UserError(f"the load loss needs fewer choices than the {E} experts, got {top_k}")
    falling = np.sort(noisy, axis=1)[:, ::-1]
    inside = noisy >= falling[:, top_k - 1 : top_k]
    # The K-th best of the others: for one that is inside, the best of those outside.
    bar = np.where(inside, falling[:, top_k : top_k + 1], falling[:, top_k - 1 : top_k])
    chance = np.asarray(0.5 * _ERFC((bar - clean) / (deviation * math.sqrt(2.0))), dtype=np.float64)
    return cv_squared(chance.sum(axis=0))


def sequence_loss(scores: Floats, experts: Integers, sequence: Integers | None = None) -> float:
    """Sum of f_i P_i within each sequence, mean over sequences (DeepSeek-V3 report, equations 17-20).

    f is E / K times the share of the sequence's tokens that chose i in `experts` [T, K], P the mean of the positive
    `scores` [T, E] normalised by token. 1 where even.
    """
    T, E = scores.shape
    index, counts = numbered(sequence, T)
    mass = np.zeros((counts.size, E))
    np.add.at(mass, index, renormalized(scores))
    token, choice = np.nonzero(experts != NO_EXPERT)
    chosen = np.zeros((counts.size, E))
    np.add.at(chosen, (index[token], experts[token, choice]), 1.0)
    tokens = counts[:, None]
    return float((E * chosen / (experts.shape[1] * tokens) * mass / tokens).sum(axis=1).mean())


def device_loss(probabilities: Floats, experts: Integers, device: Integers) -> float:
    """Sum over devices of f' P', with f' the mean of f over a device's experts and P' the sum of P (DeepSeek-V2
    report, equations 26-28); `device` [E] of each expert, f as in `sequence_loss`. 1 where even."""
    E = probabilities.shape[1]
    f = E * _shares(experts, E)
    held = np.bincount(device)
    f_mean = np.bincount(device, weights=f) / np.maximum(held, 1)
    return float((f_mean * np.bincount(device, weights=probabilities.mean(axis=0))).sum())


def z_loss(logits: Floats) -> float:
    """Mean over tokens of the squared log of the summed powers of the logits [T, E] (ST-MoE, equation 5)."""
    peak = logits.max(axis=1)
    total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    return float((total**2).mean())


def _shares(experts: Integers, count: int) -> Floats:
    """Each expert's share [E] of the T K places of `experts` [T, K]."""
    return np.bincount(experts[experts != NO_EXPERT], minlength=count) / max(1, experts.size)
