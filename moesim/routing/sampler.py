"""From drawn choices to counts: what an expert-parallel group's dispatch has to move, and its experts to compute.

T tokens of a source rank, E experts, K choices, R ranks, N domains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.routing import _kernels
from moesim.routing.capacity import CapacityRule, device_limit
from moesim.routing.counts import RoutingCounts
from moesim.routing.drawn import Drawn, Draws
from moesim.routing.overflow import Gating, Scores, gates_of, settle
from moesim.specs.routing import CapacitySpec

Names = NDArray[np.uint16]
SPAN_CHOICES = 1 << 20
MOST_ROWS = 2**31 - 1


class RoutingSampler:
    """Counts where the tokens of one expert-parallel group go; every (layer, sample) is a stream of its own.

    `layer` counts MoE layers; `placement` [E] is the rank of each expert; domains are `ranks_per_domain` consecutive
    ranks, the last perhaps fewer. `capacity` None: dropless. `gating`: what gates are, where capacity asks for them and
    the draws do not know. Pure, and safe to share between threads.
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
        placement: NDArray[np.int64],
        streams: Streams,
        gating: Gating = "softmax",
    ) -> None:
        placement = np.asarray(placement, dtype=np.int64)
        self.draws, self.streams, self.gating = draws, streams, gating
        self.top_k, self.tokens_per_rank, self.ranks = top_k, tokens_per_rank, ranks
        self.experts, self.domains = placement.size, -(-ranks // ranks_per_domain)
        if placement.ndim != 1 or not np.isin(placement, np.arange(ranks)).all():
            raise InternalError(f"placement must give each expert one of {ranks} ranks")
        self.rule = CapacityRule.of(capacity) if capacity else None
        self.placement = placement
        self._places = _kernels.Places(
            np.append(placement, ranks).astype(np.int32),
            np.append(placement // ranks_per_domain, self.domains).astype(np.int32),
        )

    def sample(self, layer: int, sample: int) -> RoutingCounts:
        """Counts of one microbatch in one MoE layer."""
        R, N, E = self.ranks, self.domains, self.experts
        tallies = _kernels.Tallies(*(np.zeros(shape, np.int32) for shape in ((R, R), (R, R), (R, N), E)))
        routed = np.zeros(E + 1, np.int64)
        for first, last in self._spans():
            drawn = self.draws.draw(layer, sample, first, last)
            kept = self._settle(drawn, layer, sample, first, routed)
            flat = np.ascontiguousarray(kept).reshape(last - first, -1)
            _kernels.count_sources(flat, kept.shape[2], self._places, first, tallies)
        expert_routed = tallies.expert_kept if self.rule is None else routed[:E].astype(np.int32)
        tokens = np.full(R, self.tokens_per_rank, np.int32)
        return RoutingCounts(tokens=tokens, expert_routed=expert_routed, **tallies._asdict())

    def choices(self, layer: int, sample: int, rank: int) -> Names:
        """The routed experts [T, K] of one source rank's tokens, best first: what `sample` counts, before drops."""
        return np.asarray(self.draws.draw(layer, sample, rank, rank + 1).choices[0])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Source ranks in turn, a bounded number at a time; all of them where capacity counts the whole group."""
        whole = self.rule is not None and self.rule.scope == "whole-group"
        step = self.ranks if whole else max(1, SPAN_CHOICES // (self.tokens_per_rank * self.top_k))
        for first in range(0, self.ranks, step):
            yield first, min(first + step, self.ranks)

    def _settle(self, drawn: Drawn, layer: int, sample: int, first: int, routed: NDArray[np.int64]) -> Names:
        """The choices [n, T, K] after capacity: E for what is dropped. Adds what was routed [E+1] to `routed`."""
        if self.rule is None:
            return drawn.choices
        n, T, K = drawn.choices.shape
        routed += np.bincount(drawn.choices.ravel(), minlength=self.experts + 1)
        scopes = 1 if self.rule.scope == "whole-group" else n
        choices, row = drawn.choices.reshape(scopes, -1, K), drawn.row.reshape(scopes, -1)
        capacity = self.rule.capacity(self.tokens_per_rank * (n // scopes), self.experts, self.top_k)
        rows = np.full(self.experts, min(capacity, MOST_ROWS))
        settled = np.empty_like(choices)
        for i in range(scopes):
            seed = self.streams.integer(f"routing/layer{layer}/sample{sample}/capacity{first + i}")
            if self.rule.per_rank:
                gates = self._gates(drawn, choices[i], row[i], slice(i * n // scopes, (i + 1) * n // scopes), seed)
                room = int(self.rule.factor * len(choices[i]) * self.top_k / self.ranks)
                kept = device_limit(choices[i], gates, self.placement, room)
                settled[i] = np.where(kept, choices[i], self.experts)
                continue
            known: NDArray[np.float32] | None = None
            most = np.bincount(choices[i].ravel(), minlength=self.experts)[: self.experts].max(initial=0)
            if self.rule.precedence(K).by_gate and most > capacity:
                known = self._gates(drawn, choices[i], row[i], slice(i * n // scopes, (i + 1) * n // scopes), seed)
            scores = Scores(drawn.weights, row[i])
            settled[i] = settle(self.rule, choices[i], rows, gates=known, scores=scores, seed=seed).choices
        return settled.reshape(n, T, K)

    def _gates(
        self, drawn: Drawn, choices: Names, row: NDArray[np.int32], sources: slice, seed: int
    ) -> NDArray[np.float32]:
        """Gates [T, K] of one scope's choices: the router's own where they are known, else drawn from the race."""
        if drawn.gates is not None:
            return np.asarray(drawn.gates[sources].reshape(choices.shape))
        return gates_of(choices, drawn.weights, row, seed, self.gating)
