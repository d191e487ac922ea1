"""Loads that change from step to step: popularity that wanders, or a mixture of domains whose shares wander.

Both walks are Ornstein-Uhlenbeck processes, sampled exactly: a value x with mean m and stationary standard deviation s
goes in one step to m + r (x - m) + s sqrt(1 - r^2) N(0, 1), where r = exp(-1 / correlation time in steps). So its
spread stays what it is, and after n steps it is correlated with itself by r^n.

- `popularity_walk`: x is an expert's log rate in the router's race, which starts at the load's own; m and s are mean
  and standard deviation over the layer's experts. The load stays as uneven as it was while other experts become the
  popular ones. What is far from log-normal (Zipf's law, a collapsed router) becomes log-normal of the same spread.
- `domain_walk`: x is the log of a domain's share of the tokens, m its recorded share, s stated. Loads are the domains'
  recorded ones in those shares.

How fast loads drift nobody has published: a correlation time is assumed unless it is measured.

A step's own tokens are drawn on top: sequences differ in their taste by a Dirichlet law whose variance, summed over a
layer's experts, is the load's own between sequences; S of them together vary S times less; and copies are a multinomial
draw. A token's choices count as independent, which spreads the busiest experts a little more than choosing without
replacement does.

N steps, L layers, E experts, D domains, S sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.routing.inclusion import inclusion, rates
from moesim.routing.sequences import depth
from moesim.specs.routing import Moment
from moesim.traces.replay import chosen
from moesim.traces.trace import RouterTrace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST = 1e-3
"""Of an even share: the least chance that an expert starts its walk with; what was never chosen has no logarithm."""


class Load(NamedTuple):
    """The load that drifts: a token's mean copies at each expert [L, E], and `concentration` [L] of one sequence's
    Dirichlet law about them (infinite: sequences are alike)."""

    chance: Floats
    concentration: Floats


class Domains(NamedTuple):
    """A trace's loads by domain: `chance` [D, L, E], `share` [D] of the tokens, `concentration` [L] of one sequence
    about its own domain."""

    chance: Floats
    share: Floats
    concentration: Floats


def load_of(chance: Floats, between: Floats) -> Load:
    """A load by the moments of its routing: mean copies [L, E] and their variance between sequences [L, E]."""
    share = chance / chance.sum(axis=-1, keepdims=True)
    spread = (between / chance.sum(axis=-1, keepdims=True) ** 2).sum(axis=-1)
    single = (share * (1.0 - share)).sum(axis=-1)
    with np.errstate(divide="ignore"):
        return Load(chance, np.maximum(single / spread - 1.0, 1e-3))


def domains_of(
    trace: RouterTrace, layers: int, moment: Moment | None = None, mix: dict[str, float] | None = None
) -> Domains:
    """The domains of a trace, for a model of `layers` MoE layers; raises `UserError` where it has but one."""
    weight, starts, experts = chosen(trace, mix or {}, moment), trace.starts, trace.meta.experts
    held = np.flatnonzero(np.bincount(trace.domain, weight, len(trace.meta.domains)) > 0)
    if held.size < 2:
        raise UserError("the trace has one domain: nothing for its load to drift between")
    of_domain = np.where(trace.domain == held[:, None], weight, 0.0)
    inside = of_domain / of_domain.sum(axis=1, keepdims=True)
    lengths = np.maximum(np.diff(starts), 1)[:, None]
    chance, between = np.zeros((2, trace.layers, held.size, experts))
    for layer in range(trace.layers):
        names = trace.experts[:, layer]
        there = names != trace.none
        place = np.broadcast_to(trace.sequence[:, None], names.shape)[there].astype(np.int64) * experts + names[there]
        mean = np.bincount(place, minlength=trace.sequences * experts).reshape(-1, experts) / lengths
        chance[layer] = inside @ mean
        between[layer] = inside @ mean**2 - chance[layer] ** 2
    share, at = of_domain.sum(axis=1), depth(layers, trace.layers)
    apart = np.einsum("d,lde->le", share, np.maximum(between, 0.0))
    whole = load_of(np.einsum("d,lde->le", share, chance), apart)
    return Domains(np.moveaxis(chance, 1, 0)[:, at], share / share.sum(), whole.concentration[at])


def walk(
    start: Floats, spread: Floats | float, correlation: float, steps: int, generator: np.random.Generator
) -> Floats:
    """An Ornstein-Uhlenbeck walk [N, ...] about 0 from `start` [...], of stationary standard deviation `spread`."""
    if not correlation > 0.0:
        raise UserError(f"a correlation time of {correlation:g} steps: it must be above 0")
    keeps = float(np.exp(-1.0 / correlation))
    moves = spread * np.sqrt(-np.expm1(-2.0 / correlation))
    found = np.empty((steps, *start.shape))
    found[:1] = start
    for step in range(1, steps):
        found[step] = keeps * found[step - 1] + moves * generator.standard_normal(start.shape)
    return found


def popularity_walk(chance: Floats, steps: int, correlation: float, generator: np.random.Generator) -> Floats:
    """A token's mean copies at each expert [N, L, E] while popularity wanders from `chance` [L, E]."""
    copies = chance.sum(axis=-1)
    logs = np.log(rates(np.maximum(chance, LEAST * chance.mean(axis=-1, keepdims=True))))
    middle = logs.mean(axis=-1, keepdims=True)
    walked = walk(logs - middle, logs.std(axis=-1, keepdims=True), correlation, steps, generator)
    weights = np.exp(walked - walked.max(axis=-1, keepdims=True))
    return inclusion(weights, np.broadcast_to(copies, weights.shape[:-1]))


def domain_walk(
    domains: Domains, steps: int, correlation: float, spread: float, generator: np.random.Generator
) -> Floats:
    """A token's mean copies at each expert [N, L, E] while the logs of the domains' shares wander by `spread`."""
    logs = np.log(domains.share)
    walked = logs + walk(np.zeros_like(logs), spread, correlation, steps, generator)
    shares = np.exp(walked - walked.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("nd,dle->nle", shares, domains.chance))


def draw(
    chance: Floats, concentration: Floats, tokens: float, sequences: float, generator: np.random.Generator
) -> Integers:
    """Copies at each expert [..., L, E] of `tokens` tokens in `sequences` sequences, by mean copies a token
    [..., L, E] and one sequence's `concentration` [L]."""
    share = chance / chance.sum(axis=-1, keepdims=True)
    if np.isfinite(concentration).any():
        together = np.broadcast_to((sequences * (concentration + 1.0) - 1.0)[..., None], share.shape)
        known = np.isfinite(together)
        taste = generator.standard_gamma(np.where(known, np.maximum(together * share, 1e-12), 1.0))
        total = taste.sum(axis=-1, keepdims=True)
        share = np.where(known & (total > 0.0), taste / np.maximum(total, 1e-300), share)
    copies = np.rint(tokens * chance.sum(axis=-1)).astype(np.int64)
    return generator.multinomial(copies, share / share.sum(axis=-1, keepdims=True))
