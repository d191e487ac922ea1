"""Replay of a recorded trace as a load: its own sequences, in its own order, on simulated ranks.

T tokens of a source rank, L layers of the simulated model, S sequences of the trace, E experts, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.randomness import Streams
from moesim.routing.drawn import Drawn
from moesim.routing.moments import Moments
from moesim.routing.sequences import depth, one_domain, spread_choice, weighted
from moesim.specs.routing import Moment
from moesim.traces.trace import RouterTrace

Floats = NDArray[np.float64]
MOST_KEPT = 64


class ReplayDraws:
    """A simulated sequence is a recorded one; where that is too short, others of its domain follow it.

    Layers of the simulated model take the recorded layer of the same relative depth. `moment`: the first, the middle
    or the last of the recorded training steps (the last where none is named); `mix`: shares of domains (as recorded
    where empty); `blocks`: each sample holds one domain, in turn.
    """

    def __init__(
        self,
        trace: RouterTrace,
        *,
        layers: int,
        ranks: int,
        tokens_per_rank: int,
        sequences_per_rank: int,
        streams: Streams,
        moment: Moment | None = None,
        mix: Mapping[str, float] | None = None,
        blocks: bool = False,
    ) -> None:
        self.trace, self.streams, self.ranks = trace, streams, ranks
        self.tokens_per_rank = tokens_per_rank
        self.sequences_per_rank = min(max(1, sequences_per_rank), tokens_per_rank)
        self.share = chosen(trace, mix or {}, moment)
        self.blocks = blocks
        self.layer = depth(layers, trace.layers)
        self._tokens: dict[int, NDArray[np.int64]] = {}

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        tokens, recorded = self._replayed(sample)[first:last], int(self.layer[layer])
        experts = self.trace.meta.experts
        names = self.trace.experts[tokens, recorded]
        choices = np.where(names == self.trace.none, experts, names).astype(np.uint16)
        gates = None
        if self.trace.weights is not None:
            gates = self.trace.weights[tokens, recorded].astype(np.float32)
        popularity = 1.0 + np.bincount(choices.ravel(), minlength=experts + 1)[None, :experts]
        row = np.broadcast_to(np.int32(0), choices.shape[:2])
        return Drawn(choices, popularity / popularity.mean(), row, gates)

    def _replayed(self, sample: int) -> NDArray[np.int64]:
        """Which recorded token stands at each place of a sample [R, T]: the same for all layers."""
        found = self._tokens.get(sample)
        if found is None:
            found = self._choose(sample)
            if len(self._tokens) < MOST_KEPT:
                self._tokens[sample] = found
        return found

    def _choose(self, sample: int) -> NDArray[np.int64]:
        generator = self.streams.generator(f"routing/sample{sample}/sequences")
        starts, domain = self.trace.starts, self.trace.domain
        share = one_domain(self.share, domain, sample) if self.blocks else self.share
        edges = np.arange(self.sequences_per_rank + 1) * self.tokens_per_rank // self.sequences_per_rank
        slots = np.tile(np.diff(edges), self.ranks)
        heads = spread_choice(share, slots.size, generator)
        pieces = []
        for head, length in zip(heads.tolist(), slots.tolist(), strict=True):
            alike = share * (domain == domain[head])
            pieces.append(_tokens_from(head, length, starts, alike, generator))
        return np.concatenate(pieces).reshape(self.ranks, self.tokens_per_rank)


def _tokens_from(
    head: int, length: int, starts: NDArray[np.int64], share: Floats, generator: np.random.Generator
) -> NDArray[np.int64]:
    """`length` tokens: a window of sequence `head`, or the whole of it and of others drawn by `share`."""
    begin, end = int(starts[head]), int(starts[head + 1])
    if end - begin >= length:
        begin += int(generator.integers(0, end - begin - length + 1))
        return np.arange(begin, begin + length)
    parts, left = [np.arange(begin, end)], length - (end - begin)
    while left > 0:
        following = int(generator.choice(share.size, p=share / share.sum()))
        begin, end = int(starts[following]), int(starts[following + 1])
        parts.append(np.arange(begin, min(end, begin + left)))
        left -= parts[-1].size
    return np.concatenate(parts)


def chosen(trace: RouterTrace, mix: Mapping[str, float], moment: Moment | None) -> Floats:
    """Probability [S] of each recorded sequence, by domain shares and moment of training; longer ones more often."""
    lengths = np.diff(trace.starts).astype(np.float64)
    return weighted(lengths, trace.domain, trace.step, trace.meta.domains, mix, moment)


def replay_moments(
    trace: RouterTrace,
    layers: int,
    tokens: int,
    mix: Mapping[str, float] | None = None,
    moment: Moment | None = None,
    blocks: bool = False,
) -> Moments:
    """The moments of a replayed trace, in sequences of `tokens` tokens each: layer by layer [layers, E].

    What sequences of one domain differ in is less, the more of them a simulated one is made of.
    """
    share, starts, experts = chosen(trace, mix or {}, moment), trace.starts, trace.meta.experts
    lengths = np.maximum(np.diff(starts), 1)
    pieces = max(1.0, tokens / float(share @ lengths))
    domains = np.eye(len(trace.meta.domains))[:, trace.domain] * share
    of_domain = np.maximum(domains.sum(axis=1, keepdims=True), 1e-300)
    by_layer = np.zeros((trace.layers, 3, experts))
    for layer in range(trace.layers):
        names = trace.experts[:, layer, :]
        held = names != trace.none
        place = np.broadcast_to(trace.sequence[:, None], names.shape)[held].astype(np.int64) * experts + names[held]
        mean = np.bincount(place, minlength=trace.sequences * experts).reshape(-1, experts) / lengths[:, None]
        chance = share @ mean
        apart = of_domain[:, 0] @ (domains / of_domain @ mean - chance) ** 2
        own = (share @ (mean - chance) ** 2 - apart) / pieces
        by_layer[layer] = (chance, own, apart) if blocks else (chance, own + apart, 0.0 * apart)
    chance, between, shared = np.moveaxis(by_layer[depth(layers, trace.layers)], 1, 0)
    single = np.maximum(chance * (1.0 - chance), 0.0)
    return Moments(chance, np.maximum(single - between, 0.0), np.minimum(between, single), shared)
