"""From drawn choices to counts: what an expert-parallel group's dispatch has to move, and its experts to compute.

T tokens of a source rank, E experts, K choices, R ranks, N domains, P slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.routing import _kernels
from moesim.routing.capacity import CapacityRule, device_limit
from moesim.routing.counts import PlacedCounts, RoutingCounts
from moesim.routing.drawn import Drawn, Draws
from moesim.routing.overflow import Gating, Scores, gates_of, settle
from moesim.routing.slots import Slots
from moesim.specs.routing import CapacitySpec

Names = NDArray[np.uint16]
SPAN_CHOICES = 1 << 20
MOST_ROWS = 2**31 - 1


class _Seats(NamedTuple):
    """Where what a layer's copies are called by stands, experts or slots: `rank` [E or P] and the compiled places."""

    rank: NDArray[np.int64]
    places: _kernels.Places


class RoutingSampler:
    """Counts where the tokens of one expert-parallel group go; every (layer, sample) is a stream of its own.

    `layer` counts MoE layers; `placement` [E] is the rank of each expert in all of them, or says their slots layer by
    layer; domains are `ranks_per_domain` consecutive ranks, the last perhaps fewer. `capacity` None: dropless. Where
    experts have several slots each slot has the room that an expert would have. `gating`: what gates are, where
    capacity asks for them and the draws do not know. Pure, and safe to share between threads.
    """

    def __init__(
        self,
        draws: Draws,
        *,
        top_k: int,
        tokens_per_rank: int,
        ranks: int,
        ranks_per_domain: int,
        capacity: CapacitySpec | None,
        placement: NDArray[np.int64] | Slots,
        streams: Streams,
        gating: Gating = "softmax",
    ) -> None:
        self.draws, self.streams, self.gating = draws, streams, gating
        self.top_k, self.tokens_per_rank, self.ranks = top_k, tokens_per_rank, ranks
        self.domains, self.ranks_per_domain = -(-ranks // ranks_per_domain), ranks_per_domain
        self.rule = CapacityRule.of(capacity) if capacity else None
        self.slots = placement if isinstance(placement, Slots) else None
        rank = placement.rank if isinstance(placement, Slots) else np.asarray(placement, dtype=np.int64)
        if rank.ndim != 1 or not np.isin(rank, np.arange(ranks)).all():
            raise InternalError(f"placement must give each expert one of {ranks} ranks")
        self.experts = placement.experts if isinstance(placement, Slots) else rank.size
        self._alike = self._seated(rank)

    def sample(self, layer: int, sample: int) -> RoutingCounts:
        """Counts of one microbatch in one MoE layer."""
        R, seats, slots = self.ranks, self._seats(layer), self.slots
        tallies, routed = self._count(layer, sample, self._spans(), seats)
        names = seats.rank.size
        chosen = tallies.expert_kept if self.rule is None else routed[:names].astype(np.int32)
        counts = {**tallies._asdict(), "expert_routed": chosen, "tokens": np.full(R, self.tokens_per_rank, np.int32)}
        if slots is None:
            return RoutingCounts(**counts)
        by_slot, by_expert = (chosen, tallies.expert_kept), (chosen, tallies.expert_kept)
        if slots.several:
            by_expert = (slots.by_expert(layer, chosen), slots.by_expert(layer, tallies.expert_kept))
        else:
            by_slot = (chosen[slots.expert[layer]], tallies.expert_kept[slots.expert[layer]])
        counts |= {"expert_routed": by_expert[0], "expert_kept": by_expert[1]}
        return PlacedCounts(**counts, slot_routed=by_slot[0], slot_kept=by_slot[1])

    def reach(self, layer: int, sample: int, sources: Iterable[int]) -> _kernels.Tallies:
        """Where the copies of some source ranks go before any is dropped; the others' rows stay empty."""
        seats = self._seats(layer)
        tallies = self._tallies(seats)
        for source in sources:
            choices = self._named(self.draws.draw(layer, sample, source, source + 1).choices, layer, source)
            flat = np.ascontiguousarray(choices).reshape(1, -1)
            _kernels.count_sources(flat, choices.shape[2], seats.places, source, tallies)
        return tallies

    def _count(
        self, layer: int, sample: int, spans: Iterable[tuple[int, int]], seats: _Seats
    ) -> tuple[_kernels.Tallies, NDArray[np.int64]]:
        """What is kept, and how often each expert or slot was chosen where a capacity may drop some [E or P, + 1]."""
        tallies, routed = self._tallies(seats), np.zeros(seats.rank.size + 1, np.int64)
        for first, last in spans:
            drawn = self.draws.draw(layer, sample, first, last)
            kept = self._settle(drawn, layer, sample, first, routed, seats)
            flat = np.ascontiguousarray(kept).reshape(last - first, -1)
            _kernels.count_sources(flat, kept.shape[2], seats.places, first, tallies)
        return tallies, routed

    def _tallies(self, seats: _Seats) -> _kernels.Tallies:
        R, N = self.ranks, self.domains
        return _kernels.Tallies(*(np.zeros(shape, np.int32) for shape in ((R, R), (R, R), (R, N), seats.rank.size)))

    def _seats(self, layer: int) -> _Seats:
        """Copies are called by their slot where experts have several, else by their expert."""
        if self.slots is None or self.slots.several:
            return self._alike
        return self._seated(self.slots.rank_of(layer))

    def _seated(self, rank: NDArray[np.int64]) -> _Seats:
        by_rank = np.append(rank, self.ranks).astype(np.int32)
        by_domain = np.append(rank // self.ranks_per_domain, self.domains).astype(np.int32)
        return _Seats(rank, _kernels.Places(by_rank, by_domain))

    def _named(self, choices: Names, layer: int, first: int) -> Names:
        """Choices of source ranks `first` and on by the names of their seats."""
        if self.slots is None or not self.slots.several:
            return choices
        return self.slots.named(layer, choices, first)

    def choices(self, layer: int, sample: int, rank: int) -> Names:
        """The routed experts [T, K] of one source rank's tokens, best first: what `sample` counts, before drops."""
        return np.asarray(self.draws.draw(layer, sample, rank, rank + 1).choices[0])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Source ranks in turn, a bounded number at a time; all of them where capacity counts the whole group."""
        whole = self.rule is not None and self.rule.scope == "whole-group"
        step = self.ranks if whole else max(1, SPAN_CHOICES // (self.tokens_per_rank * self.top_k))
        for first in range(0, self.ranks, step):
            yield first, min(first + step, self.ranks)

    def _settle(
        self, drawn: Drawn, layer: int, sample: int, first: int, routed: NDArray[np.int64], seats: _Seats
    ) -> Names:
        """The choices [n, T, K] by their seats' names after capacity, the number of seats for what is dropped. Adds
        what was routed to `routed` [seats + 1]."""
        named = self._named(drawn.choices, layer, first)
        if self.rule is None:
            return named
        n, T, K = named.shape
        none = seats.rank.size
        routed += np.bincount(named.ravel(), minlength=none + 1)
        scopes = 1 if self.rule.scope == "whole-group" else n
        choices, row = named.reshape(scopes, -1, K), drawn.row.reshape(scopes, -1)
        capacity = self.rule.capacity(self.tokens_per_rank * (n // scopes), self.experts, self.top_k)
        rows = np.full(none, min(capacity, MOST_ROWS))
        settled = np.empty_like(choices)
        for i in range(scopes):
            seed = self.streams.integer(f"routing/layer{layer}/sample{sample}/capacity{first + i}")
            sources = slice(i * n // scopes, (i + 1) * n // scopes)
            if self.rule.per_rank:
                gates = self._gates(drawn, row[i], sources, seed)
                room = int(self.rule.factor * len(choices[i]) * self.top_k / self.ranks)
                kept = device_limit(choices[i], gates, seats.rank, room)
                settled[i] = np.where(kept, choices[i], none)
                continue
            known: NDArray[np.float32] | None = None
            most = np.bincount(choices[i].ravel(), minlength=none)[:none].max(initial=0)
            if self.rule.precedence(K).by_gate and most > capacity:
                known = self._gates(drawn, row[i], sources, seed)
            scores = Scores(drawn.weights, row[i])
            settled[i] = settle(self.rule, choices[i], rows, gates=known, scores=scores, seed=seed).choices
        return settled.reshape(n, T, K)

    def _gates(self, drawn: Drawn, row: NDArray[np.int32], sources: slice, seed: int) -> NDArray[np.float32]:
        """Gates [T, K] of one scope's choices: the router's own where they are known, else drawn from the race."""
        choices = drawn.choices[sources].reshape(-1, drawn.choices.shape[2])
        if drawn.gates is not None:
            return np.asarray(drawn.gates[sources].reshape(choices.shape))
        return gates_of(choices, drawn.weights, row, seed, self.gating)
