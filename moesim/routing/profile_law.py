"""A fitted law as the kernels read it, and draws of given sequences: choices of one layer at a time.

S simulated sequences, T tokens, E experts, K choices, W classes, P parts of a sequence.

A simulated sequence takes the classes' shares and the tilt of one library sequence, its class path from a stream that
no layer has a part in, and noise and experts from a stream of each layer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing import _class_kernels, _profile_kernels
from moesim.routing._kernels import Law
from moesim.routing.profile import RoutingProfile

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Choices = NDArray[np.uint16]

WORD = 2.0**32


class Simulated(NamedTuple):
    """Simulated sequences, one after another: the library sequence that each imitates [S], first token of each and the
    end [S+1], and the number [S] that its random words hang on."""

    library: Integers
    start: Integers
    name: NDArray[np.uint64]


class Seeds(NamedTuple):
    """What random words begin with: those of class paths, of a layer's noise, and of its tokens."""

    path: int
    noise: int
    tokens: int


def layer_law(profile: RoutingProfile, layer: int, top_k: int) -> _profile_kernels.Layer:
    """A layer of the profile as the kernel reads it, for a router of `top_k` experts."""
    logs = profile.affinity[layer]
    logs = logs - logs.max(axis=1, keepdims=True)
    quantiles = (np.arange(_profile_kernels.GUMBELS) + 0.5) / _profile_kernels.GUMBELS
    varies = top_k == profile.meta.top_k and profile.width[layer, -1] < 1.0
    return _profile_kernels.Layer(
        affinity=np.exp(logs),
        order=(profile.sharpness[layer] * logs + profile.order_bias[layer]).astype(np.float32),
        sharpness=float(profile.sharpness[layer]),
        repeat=float(profile.repeat[layer]),
        lag=_summed(profile.lag[layer]),
        width=_summed(profile.width[layer] if varies else np.ones(1)),
        gumbel=(-np.log(-np.log(quantiles))).astype(np.float32),
    )


def _summed(share: Floats) -> NDArray[np.uint64]:
    return np.minimum(np.cumsum(share) * WORD, WORD).astype(np.uint64)


def log_tilt(profile: RoutingProfile, layer: int, library: Integers) -> Floats:
    """Log tilt [S, E] of the sequences in a layer, their own noise apart."""
    return np.asarray(profile.tilt[library] @ profile.basis[layer])


def restarts(profile: RoutingProfile, library: Integers) -> Floats:
    """Odds [S, P, W] of the class drawn where a token's class does not stay: such that the share is as recorded."""
    odds = profile.share[library] * (1.0 - profile.stay)
    stuck = odds.sum(axis=2, keepdims=True) <= 0.0
    return np.asarray(np.where(stuck, profile.share[library], odds))


def paths(profile: RoutingProfile, which: Simulated, seed: int) -> Choices:
    """The class of every token [T]."""
    path = np.empty(int(which.start[-1]), np.uint16)
    odds = restarts(profile, which.library)
    _class_kernels.draw_paths(np.uint64(seed), which.name, which.start, odds, profile.stay, path)
    return path


def draw_sequences(
    profile: RoutingProfile, layer: int, own: _profile_kernels.Layer, law: Law, which: Simulated, seeds: Seeds
) -> tuple[Choices, _profile_kernels.Races]:
    """Choices [T, K] of simulated sequences in the profile's `layer`, and the races they were drawn from."""
    path = paths(profile, which, seeds.path)
    return draw_on(profile, layer, own, law, which, seeds, path)


def draw_on(
    profile: RoutingProfile,
    layer: int,
    own: _profile_kernels.Layer,
    law: Law,
    which: Simulated,
    seeds: Seeds,
    path: Choices,
) -> tuple[Choices, _profile_kernels.Races]:
    """`draw_sequences` with the classes given."""
    S, T, (W, E) = which.library.size, path.size, own.affinity.shape
    first, row, klass = np.empty(S + 1, np.int64), np.empty(T, np.int32), np.empty(min(S * W, T), np.int32)
    rows = _class_kernels.number_races(path, which.start, W, first, row, klass)
    tilt = log_tilt(profile, layer, which.library)
    if profile.residual[layer].any():
        _class_kernels.tilt_noise(np.uint64(seeds.noise), which.name, profile.residual[layer], tilt)
    races = _profile_kernels.Races(which.start, first, row, klass[:rows], np.empty((rows, E)), tilt)
    choices = np.empty((T, law.top_k), np.uint16)
    _profile_kernels.draw_layer(law, own, races, np.uint64(seeds.tokens), which.name, choices)
    return choices, races


def plain_law(experts: int, top_k: int) -> Law:
    """The law of a router without groups: the first K arrivals."""
    words = 4 * top_k + 32
    return Law(
        top_k=top_k,
        best=0,
        groups=1,
        top_groups=1,
        draws=top_k + top_k // 4 + 1,
        words=words,
        group=np.zeros(experts + 1, np.uint16),
        score=np.arange(words + experts + 1, 0, -1).astype(np.int16),
    )
