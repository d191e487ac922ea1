"""How many copies each expert gets of a token, and how that spreads: what the closed form knows of a load.

L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.routing.inclusion import threshold
from moesim.routing.loads import normalized, tenant_logs
from moesim.routing.routers.base import Router
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.remoe import ReMoE
from moesim.routing.routers.successive import tempered
from moesim.routing.routers.top_k import TopKRouter
from moesim.routing.routers.top_p import TopP
from moesim.specs.routing import LoadProfile

Floats = NDArray[np.float64]
MOST_NUMBERS = 1 << 24
SEQUENCES, FEW, NODES = 64, 8, 9
MOST, BISECTIONS, ROUNDS = 5.0, 20, 4


@dataclass(frozen=True)
class Moments:
    """Of one token's copies at each expert [L, E]: their mean (`chance`), the variance over tokens of one sequence
    (`within`), that of a sequence's own mean over sequences (`between`), and what all sequences of a batch have in
    common where it holds one domain (`shared`, a variance too)."""

    chance: Floats
    within: Floats
    between: Floats
    shared: Floats


def of_choices(rule: Router, chance: Floats, between: Floats, shared: Floats | None = None) -> Moments:
    """The moments of a rule whose tokens choose independently, given the mean and its spread over sequences."""
    nothing = np.zeros_like(chance)
    if rule.evened:
        return Moments(chance, nothing, nothing, nothing)
    single = np.maximum(chance * (1.0 - chance), 0.0)
    if rule.by_sequence:
        return Moments(chance, nothing, single, nothing)
    return Moments(chance, single, np.minimum(between, single), nothing if shared is None else shared)


def of_profile(rule: Router, profile: LoadProfile, popularity: Floats, streams: Streams) -> Moments:
    """The moments of a simple law: `popularity` [L, E], a sequence's tilt and its tenant as the profile says.

    A tilt makes what is popular on average less so, and each sequence uneven in its own way. For the first K of a race
    both follow by quadrature; for other rules, and with tenants, from a few sequences drawn.
    """
    if isinstance(rule, Hash):
        return of_choices(rule, rule.expected(popularity), np.zeros_like(popularity))
    if profile.tenants is None and profile.sequence_tilt == 0.0:
        return of_choices(rule, rule.expected(popularity), np.zeros_like(popularity))
    if profile.tenants is None and isinstance(rule, TopKRouter) and rule.top_k > 2:
        raced = tempered(popularity, rule.spec.noise, rule.top_k)
        return of_choices(rule, *tilted_inclusion(raced, rule.top_k, profile.sequence_tilt))
    if profile.tenants is None and isinstance(rule, (TopP, ReMoE)):
        # How many experts a token has is known from a few sequences; which ones, by quadrature.
        few = streams.generator("routing/moments/tilt").standard_normal((FEW, rule.experts))
        each = rule.expected(normalized(np.log(popularity)[:, None, :] + profile.sequence_tilt * few))
        return of_choices(rule, *tilted_inclusion(popularity, each.sum(axis=-1).mean(axis=1), profile.sequence_tilt))
    logs = np.zeros((1, rule.experts))
    if profile.tenants is not None:
        logs = tenant_logs(profile.tenants, rule.experts)
    # All tenants are alike but for whose experts are whose: a few of many stand for all.
    kept = min(len(logs), max(1, MOST_NUMBERS // popularity.size))
    logs = logs[np.unique(np.linspace(0, len(logs) - 1, kept).round().astype(int))]
    if profile.sequence_tilt > 0.0:
        drawn = np.resize(logs, (max(SEQUENCES, len(logs)), rule.experts))
        tilts = streams.generator("routing/moments/tilt").standard_normal(drawn.shape)
        logs = drawn + profile.sequence_tilt * tilts
    each = rule.expected(normalized(np.log(popularity)[:, None, :] + logs))
    return of_choices(rule, each.mean(axis=1), each.var(axis=1))


def tilted_inclusion(weights: Floats, top_k: float | Floats, tilt: float) -> tuple[Floats, Floats]:
    """Mean and variance [L, E] over sequences of the chance to be among a token's K.

    Weights [L, E] are tilted by exp(tilt N(0, 1)), expert by expert; with many experts the threshold of the race is
    nearly the same in all sequences.
    """
    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    shares = shares / shares.sum()
    parts = weights[..., None] * np.exp(tilt * nodes)
    each = np.tile(shares, weights.shape[-1])
    tau = threshold(parts.reshape(len(weights), -1), top_k, each)
    chance = -np.expm1(-tau[:, None, None] * parts)
    mean = chance @ shares
    return mean, (chance - mean[..., None]) ** 2 @ shares


def simple_law(chance: Floats, between: Floats, top_k: int) -> tuple[tuple[float, float], float]:
    """The `log_normal` (first and last layer, by a straight line) and `sequence_tilt` of the simple law nearest to a
    load of mean `chance` and variance `between` sequences [L, E]: loads vary as much over experts, and as much over
    sequences."""
    layers, experts = chance.shape
    parts = np.array([NormalDist().inv_cdf((place + 0.5) / experts) for place in range(experts)])
    wanted = chance.std(axis=-1) / chance.mean(axis=-1)
    spread, tilt = np.zeros(layers), 0.0
    for _ in range(ROUNDS):
        low, high = np.zeros(layers), np.full(layers, MOST)
        for _ in range(BISECTIONS):
            spread = (low + high) / 2
            mean, _ = tilted_inclusion(np.exp(spread[:, None] * parts), top_k, tilt)
            less = mean.std(axis=-1) / mean.mean(axis=-1) < wanted
            low, high = np.where(less, spread, low), np.where(less, high, spread)
        least, most = 0.0, MOST
        for _ in range(BISECTIONS):
            tilt = (least + most) / 2
            _, apart = tilted_inclusion(np.exp(spread[:, None] * parts), top_k, tilt)
            least, most = (tilt, most) if apart.mean() < between.mean() else (least, tilt)
    depth = np.linspace(-0.5, 0.5, layers)
    slope, middle = np.polyfit(depth, spread, 1) if layers > 1 else (0.0, spread[0])
    first, last = np.clip([middle - slope / 2, middle + slope / 2], 0.0, MOST).tolist()
    return (first, last), tilt
