"""Draws seen through what a rank does with them: slices of shared sequences, and second experts left to chance.

n source ranks, T tokens of each, S sequences of a replica, K choices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.randomness import Streams
from moesim.routing.drawn import Drawn, Draws
from moesim.routing.overflow import gates_of


class SlicedDraws:
    """Ranks that share sequences: `share` consecutive ones (tensor and context parallel) each hold a slice of the same.

    `draws` are those of whole replicas, `share` times as many tokens each; a rank takes an equal stretch of each of the
    replica's `sequences`, or, where they do not divide, an equal stretch of all its tokens.
    """

    def __init__(self, draws: Draws, *, share: int, sequences: int) -> None:
        self.draws, self.share, self.sequences = draws, share, sequences

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        begin = first // self.share
        whole = self.draws.draw(layer, sample, begin, -(-last // self.share))
        n, tokens = whole.row.shape
        stretches = self.sequences if tokens % (self.sequences * self.share) == 0 else 1
        own = slice(first - begin * self.share, last - begin * self.share)

        def sliced(values: np.ndarray) -> np.ndarray:
            parts = values.reshape(n, stretches, self.share, -1, *values.shape[2:]).swapaxes(1, 2)
            return np.ascontiguousarray(parts.reshape(n * self.share, -1, *values.shape[2:])[own])

        gates = None if whole.gates is None else sliced(whole.gates)
        return Drawn(sliced(whole.choices), whole.weights, sliced(whole.row), gates)


class ThinnedDraws:
    """GShard's second experts, each used or not by its renormalised gate: with chance min(1, gate / `threshold`)."""

    def __init__(self, draws: Draws, *, threshold: float, experts: int, streams: Streams) -> None:
        self.draws, self.threshold, self.experts, self.streams = draws, threshold, experts, streams

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        drawn = self.draws.draw(layer, sample, first, last)
        choices, gates = drawn.choices.copy(), np.empty(drawn.choices.shape, np.float32)
        for i, own in enumerate(choices):
            name = f"routing/layer{layer}/sample{sample}/second{first + i}"
            gates[i] = gates_of(own, drawn.weights, drawn.row[i], self.streams.integer(name), "renormalized")
            lost = gates[i, :, 1] < self.streams.generator(name).random(len(own)) * self.threshold
            own[lost, 1] = self.experts
            gates[i, lost, 1] = 0.0
        return replace(drawn, choices=choices, gates=gates)
