"""How uneven one iteration's routing is: drawn beforehand token by token at several batch sizes, then a draw each.

An iteration's imbalance is the mean over its MoE layers of max/mean rows over expert-parallel ranks (over experts). At
each size of a grid the existing token-level sampler gives mean and deviation of a layer's max/mean between batches; the
mean over layers, which draw independently of each other, is then normal with that deviation over the root of the number
of layers. Between the sizes both are interpolated in the logarithm of tokens, where they fall like a power.

G sizes, B iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BLOCK = 4096


class Peaks(NamedTuple):
    """max/mean over ranks and over experts of B iterations, [B] each."""

    rank: Floats
    expert: Floats


@dataclass(frozen=True)
class ImbalanceLaw:
    """Mean and deviation [G] of an iteration's max/mean at `tokens` [G] of the whole instance, ascending."""

    tokens: Floats
    rank_mean: Floats
    rank_deviation: Floats
    expert_mean: Floats
    expert_deviation: Floats

    def at(self, tokens: Floats, normal: Floats) -> Peaks:
        """The imbalance of iterations of so many tokens [B], so many deviations [B] above their mean; at least 1."""
        place = np.log(np.maximum(tokens, 1.0))
        grid = np.log(self.tokens)
        rank, expert = (
            np.maximum(1.0, np.interp(place, grid, mean) + normal * np.interp(place, grid, deviation))
            for mean, deviation in (
                (self.rank_mean, self.rank_deviation),
                (self.expert_mean, self.expert_deviation),
            )
        )
        return Peaks(rank, expert)


class Imbalances(NamedTuple):
    """The laws of iterations that compute prompts, whose tokens share sequences, and of those that decode alone."""

    prompts: ImbalanceLaw
    decode: ImbalanceLaw

    @classmethod
    def even(cls) -> Imbalances:
        """Perfect balance at any size, as of a model without experts."""
        one, none = np.ones(1), np.zeros(1)
        law = ImbalanceLaw(one, one, none, one, none)
        return cls(law, law)


class Draws:
    """The imbalance of one engine's iterations: each has a number of its own, however many are asked for at once."""

    def __init__(self, laws: Imbalances, generator: np.random.Generator) -> None:
        self.laws, self.generator = laws, generator
        self._normal = np.zeros(0)

    def peaks(self, tokens: Floats, first: int, prompts: bool) -> Peaks:
        """Imbalance of iterations number `first`, `first` + 1, ... of so many tokens [B], with prompts or without."""
        last = first + len(tokens)
        while len(self._normal) < last:
            self._normal = np.concatenate([self._normal, self.generator.standard_normal(_BLOCK)])
        law = self.laws.prompts if prompts else self.laws.decode
        return law.at(tokens, self._normal[first:last])
