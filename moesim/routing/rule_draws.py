"""Choices by any router's rule, from logits: for the rules that are no filter over a race.

T tokens of a source rank, E experts, K choices (the most that a token of the call has).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.routing.assignment import NO_EXPERT, Assignment
from moesim.routing.drawn import Drawn, Draws
from moesim.routing.routers.base import Batch, Router


class RuleDraws:
    """Takes each token's weights from `law`, adds Gumbel noise to their logarithms, and lets the rule choose.

    It sees a source rank's tokens together, as the balanced rules need. A hundred to two thousand times slower than a
    race.
    """

    def __init__(self, rule: Router, law: Draws, *, sequences_per_rank: int, streams: Streams) -> None:
        self.rule, self.law, self.streams = rule, law, streams
        self.sequences_per_rank = max(1, sequences_per_rank)

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        drawn = self.law.draw(layer, sample, first, last)
        found = [
            self._choose(drawn, rank - first, self.streams.generator(f"routing/layer{layer}/sample{sample}/rank{rank}"))
            for rank in range(first, last)
        ]
        most = max(assignment.experts.shape[1] for assignment in found)
        choices = np.stack([_names(assignment.experts, most, self.rule.experts) for assignment in found])
        gates = np.stack([_wide(assignment.weights, most, 0.0) for assignment in found])
        row = drawn.row
        if choices.shape[1] != row.shape[1]:
            # Slots stand for no token: the source's first row of weights serves where a copy is sent elsewhere.
            row = np.repeat(row[:, :1], choices.shape[1], axis=1)
        return Drawn(choices, drawn.weights, row, gates)

    def _choose(self, drawn: Drawn, source: int, generator: np.random.Generator) -> Assignment:
        row = drawn.row[source]
        noise = generator.standard_exponential((row.size, self.rule.experts), dtype=np.float32)
        logits = np.log(drawn.weights)[row] - np.log(np.maximum(noise, np.finfo(np.float32).tiny))
        sequence = np.arange(row.size) * self.sequences_per_rank // row.size
        found = self.rule.choose(logits, None, Batch(sequence=sequence, generator=generator))
        if found.experts.ndim != 2:
            raise InternalError(f"router {self.rule.spec.rule}: choices of shape {found.experts.shape}")
        return found


class EvenDraws:
    """A balanced assignment of one expert a token: each expert gets as many of a source's tokens as any other.

    Which tokens they are is left to chance: it changes no count, and the assignment itself takes seconds a batch.
    """

    def __init__(self, experts: int, *, tokens_per_rank: int, streams: Streams) -> None:
        self.experts, self.tokens_per_rank, self.streams = experts, tokens_per_rank, streams

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        T, E = self.tokens_per_rank, self.experts
        choices = np.empty((last - first, T, 1), np.uint16)
        for rank in range(first, last):
            generator = self.streams.generator(f"routing/layer{layer}/sample{sample}/rank{rank}")
            choices[rank - first, :, 0] = generator.permutation(generator.permutation(E)[np.arange(T) % E])
        return Drawn(choices, np.ones((1, E)), np.zeros(choices.shape[:2], np.int32))


def _names(experts: NDArray[np.int64], width: int, none: int) -> NDArray[np.uint16]:
    """Choices [T, width] with `none` where there is no expert."""
    wide = _wide(experts, width, NO_EXPERT)
    return np.where(wide == NO_EXPERT, none, wide).astype(np.uint16)


def _wide(values: NDArray[np.generic], width: int, fill: float) -> NDArray[np.generic]:
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill) if missing else values
