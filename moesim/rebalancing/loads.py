"""Drifting loads as a study asks for them: what is known before each step, and what its ranks then have to wait for.

N steps, M samples of a step, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.placement.drift import draw
from moesim.placement.rebalancing import Memory, seen
from moesim.randomness import Streams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
DOMAIN_SPREAD = 1.0


@dataclass(frozen=True)
class Drift:
    """How loads change: `popularity` of experts or shares of a trace's `domains` wander (laws: `placement.drift`), with
    a `correlation` time in steps; `spread`: standard deviation of the log of a domain's share."""

    kind: Literal["popularity", "domains"] = "popularity"
    correlation: float = 100.0
    spread: float = DOMAIN_SPREAD


@dataclass(frozen=True)
class Settings:
    """How the study is done: `steps` looked at, `samples` microbatches of each, `seeds` in turn."""

    steps: int = 200
    samples: int = 4
    seeds: int = 4

    def __post_init__(self) -> None:
        if self.steps < 4 or self.samples < 1 or self.seeds < 1:
            raise UserError("a study of rebalancing needs 4 steps or more, a sample of each, and a seed")


class Batch(NamedTuple):
    """What is routed together: tokens, and the sequences that they come from."""

    tokens: float
    sequences: float


class Wandering(NamedTuple):
    """A token's mean copies at each expert, step by step [N, L, E], and one sequence's `concentration` [L] about them
    (`placement.drift`)."""

    chance: Floats
    concentration: Floats


@dataclass(frozen=True)
class History:
    """Loads of one seed: `known` [N, L, E] before each step, and `loads` [N, M, L, E] of samples of the step that wait
    for their busiest rank; the first `warm` steps only fill the memory."""

    known: Floats
    loads: Integers
    warm: int


def warm_steps(memory: Memory) -> int:
    """Steps until a memory is full: its window, or two half-lives."""
    return memory.window if memory.half_life is None else int(np.ceil(2 * memory.half_life))


def drawn(load: Wandering, counted: Batch, waited: Batch, memory: Memory, samples: int, streams: Streams) -> History:
    """Tokens drawn from a load: placements are made from counts of `counted` a step (the whole step, as a rule), and
    ranks wait for each other over `waited` (a microbatch of a group, or a pass), of which `samples` are drawn a step.

    `load` begins `warm_steps` before the first step that is looked at.
    """
    shown = draw(load.chance, load.concentration, *counted, streams.generator("rebalancing/steps"))
    each = np.repeat(load.chance[:, None], samples, axis=1)
    loads = draw(each, load.concentration, *waited, streams.generator("rebalancing/samples"))
    return History(seen(shown, memory)[:-1], loads, warm_steps(memory))
