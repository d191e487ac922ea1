"""How long layers wait for experts that come over the host link, and what of it hides behind compute.

A layer asks its router, then computes its experts: those at hand first, and last the one that comes last. Without
prefetch all missing ones are fetched behind the router. With it, layer l names as many experts of layer l + 1 as will
be missing, a share `accuracy` of them rightly; they are fetched when layer l's own are here, behind what is computed
until the router of layer l + 1. It tells which of them are wrong: those not begun are dropped, the one on its way has
to come first, half of it on average. The rest is fetched then. For layers all alike, A: all but experts, C: experts,
f: an expert's fetch, M: missing ones, c: the expert computed last, a: accuracy, a layer takes

    A + max(C, F + c),  F = f M - a min(f M, A + max(C - F, c)) + (1 - a) f / 2 where the link was not done,

which is max(A + C, f M) where every name is right. The first layer has none before it.
B iterations, M MoE layers, K numbers of missing experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """The host link: seconds `each` expert takes, and the share of names that are right; None without prefetch."""

    each: float
    accuracy: float | None = None

    def left(self, missing: Floats, spare: Floats) -> Floats:
        """Link seconds still needed when the router has spoken, after `spare` seconds for early fetches."""
        whole = missing * self.each
        if self.accuracy is None:
            return whole
        early = np.minimum(whole, spare)
        stray = np.where(early < whole, (1.0 - self.accuracy) * self.each / 2, 0.0)
        return whole - self.accuracy * early + stray


@dataclass(frozen=True)
class Layer:
    """Compute seconds of a layer [...]: `beside` its experts, its `experts`, and `one` of these alone."""

    beside: Floats
    experts: Floats
    one: Floats


def walk(layer: Layer, link: Link, missing: Floats) -> Floats:
    """Seconds [B] of all layers that miss `missing` [B, M] experts, one layer after the other; `layer` [B]."""
    total, spare = np.zeros(len(missing)), np.zeros(len(missing))
    for at in range(missing.shape[-1]):
        came = link.left(missing[:, at], spare) if at else missing[:, at] * link.each
        behind = _behind(layer, link, came)
        total += layer.beside + behind
        spare = layer.beside + behind - came
    return total


def expected_walk(layer: Layer, link: Link, chance: Floats, layers: int) -> Floats:
    """The same in expectation [...], of layers that each miss k experts with `chance` [..., K]; `layer` [...].

    Early fetches have the time that the layer before leaves the link on average.
    """
    count = np.arange(chance.shape[-1], dtype=np.float64)
    own = Layer(layer.beside[..., None], layer.experts[..., None], layer.one[..., None])
    came = count * link.each
    behind = _behind(own, link, came)
    total = layer.beside + _mean(behind, chance)
    if link.accuracy is None:
        return np.asarray(layers * total)
    for _ in range(1, layers):
        spare = layer.beside + _mean(behind - came, chance)
        came = link.left(count, spare[..., None])
        behind = _behind(own, link, came)
        total = total + layer.beside + _mean(behind, chance)
    return np.asarray(total)


def _behind(layer: Layer, link: Link, came: Floats) -> Floats:
    """Seconds from the router until all experts are computed, the last of which comes after `came` seconds."""
    return np.maximum(layer.experts, came + np.minimum(came / link.each, 1.0) * layer.one)


def _mean(values: Floats, chance: Floats) -> Floats:
    return np.asarray((values * chance).sum(axis=-1))
