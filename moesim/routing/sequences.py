"""Which recorded sequences stand for the simulated ones: by domain, by moment of training, evenly spread.

S recorded sequences, D domains.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError, UserError, nearest_hint, shorten

Floats = NDArray[np.float64]
MOMENTS = ("early", "middle", "late")


def spread_choice(share: Floats, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` sequences in proportion to `share` [S], as evenly as whole numbers allow, in random order."""
    points = (np.arange(count) + generator.random()) / count
    order = generator.permutation(share.size)
    found = order[np.searchsorted(np.cumsum(share[order]) / share.sum(), points, side="right").clip(max=share.size - 1)]
    return np.asarray(generator.permutation(found))


def depth(layers: int, recorded: int) -> NDArray[np.int64]:
    """The recorded layer at the relative depth of each of `layers` layers."""
    return np.rint(np.linspace(0, recorded - 1, layers) if layers > 1 else [(recorded - 1) / 2]).astype(np.int64)


def one_domain(share: Floats, domain: NDArray[np.int32], sample: int) -> Floats:
    """`share` [S] left to a single domain, that of this sample: domains take turns, as often as their shares say."""
    weight = np.bincount(domain, weights=share)
    present = np.flatnonzero(weight > 0)
    # The domain whose running share passes a whole number at this turn: turns as even as can be.
    due = np.outer(np.arange(sample + 1) + 1, weight[present] / weight[present].sum())
    served = np.zeros(present.size)
    turn = 0
    for owed in due:
        turn = int(np.argmax(owed - served))
        served[turn] += 1
    return np.asarray(np.where(domain == present[turn], share, 0.0))


def weighted(
    lengths: Floats,
    domain: NDArray[np.integer],
    step: NDArray[np.integer],
    domains: tuple[str, ...],
    mix: Mapping[str, float],
    moment: str | None,
) -> Floats:
    """Probability [S] of sequences of `lengths` [S], each of a `domain` and a training `step` [S]."""
    share = np.where(np.isin(step, steps_of(step, moment)), lengths, 0.0)
    if mix:
        unknown = [name for name in mix if name not in domains]
        if unknown:
            raise UnknownNameError("domain", unknown[0], domains)
        held = np.bincount(domain, weights=share, minlength=len(domains))
        wanted = np.array([mix.get(name, 0.0) for name in domains])
        empty = [name for name, want, have in zip(domains, wanted, held, strict=True) if want > 0 and have == 0]
        if empty:
            raise UserError(f"domain {empty[0]!r} has no sequences at that moment of training")
        if not wanted.sum() > 0.0:
            raise UserError("the shares of mix add up to nothing")
        share = share * (wanted / np.maximum(held, 1e-300))[domain]
    return np.asarray(share / share.sum())


def steps_of(step: NDArray[np.integer], moment: str | None) -> NDArray[np.integer]:
    """The recorded training steps that a moment stands for: the first, middle or last third (the last where none is
    named); fewer than three steps are all late. Raises UserError for another moment of these, or an unknown one."""
    if moment is not None and moment not in MOMENTS:
        raise UserError(f"moment is {shorten(moment)!r}{nearest_hint(moment, MOMENTS)}")
    recorded = np.unique(step)
    if recorded.size >= len(MOMENTS):
        return np.array_split(recorded, len(MOMENTS))[MOMENTS.index(moment or MOMENTS[-1])]
    if moment in (None, MOMENTS[-1]):
        return recorded
    raise UserError(f"{recorded.size} steps of training were recorded; early and middle need 3 or more")
