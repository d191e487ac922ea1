"""The fast road from a load profile to counts: draws the tokens of an expert-parallel group, layer by layer.

T tokens of a source rank, E experts, K choices, R ranks, N domains, S sequences of a source rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError, UserError
from moesim.randomness import Streams
from moesim.routing import _kernels
from moesim.routing.capacity import CapacityRule
from moesim.routing.counts import RoutingCounts
from moesim.routing.loads import layer_weights, normalized
from moesim.routing.routers import router as router_of
from moesim.routing.routers.top_k import TopKRouter
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec, LoadProfile

Floats = NDArray[np.float64]

ALIAS_DRAWS_PER_CHOICE, ALIAS_DRAWS = 4, 32
SCORE_SCALE = 2.0**14 - 1
MOST_EXPERTS = 2**16 - 1
MOST_ROWS = 2**31 - 1
WEIGHT_ROWS = 64


class RoutingSampler:
    """Draws where the tokens of one expert-parallel group go; every (layer, sample) is a stream of its own.

    `layers` counts MoE layers; `placement` [E] is the rank of each expert; domains are `ranks_per_domain` consecutive
    ranks, the last perhaps fewer. Each source rank holds `sequences_per_rank` sequences of `tokens_per_rank` tokens in
    all. The profile's popularity is that of the choices made, any selection bias included. `capacity` None: dropless.
    Pure, safe to share between threads, and free of Python's lock while it draws.
    """

    def __init__(
        self,
        *,
        router: RouterSpec,
        profile: LoadProfile,
        experts: int,
        top_k: int,
        layers: int,
        ranks: int,
        ranks_per_domain: int,
        tokens_per_rank: int,
        sequences_per_rank: int,
        capacity: CapacitySpec | None,
        placement: NDArray[np.int64],
        streams: Streams,
    ) -> None:
        rule = router_of(router, experts, top_k)
        if not isinstance(rule, TopKRouter):
            raise UserError(f"router rule {router.rule!r} cannot be sampled from a load profile")
        if experts > MOST_EXPERTS:
            raise UserError(f"{experts} experts: at most {MOST_EXPERTS} can be sampled")
        if ranks * tokens_per_rank > MOST_ROWS:
            raise UserError(f"{ranks} ranks of {tokens_per_rank} tokens: at most {MOST_ROWS} tokens can be sampled")
        self.router, self.profile, self.streams = router, profile, streams
        self.experts, self.top_k, self.layers, self.ranks = experts, top_k, layers, ranks
        self.ranks_per_domain = ranks_per_domain
        self.domains = -(-ranks // ranks_per_domain)
        self.tokens_per_rank, self.sequences_per_rank = tokens_per_rank, max(1, sequences_per_rank)
        self.placement = np.asarray(placement, dtype=np.int64)
        if self.placement.shape != (experts,) or not np.isin(self.placement, np.arange(ranks)).all():
            raise InternalError(f"placement must give each of {experts} experts one of {ranks} ranks")
        self.popularity = layer_weights(profile, experts, layers, streams)
        self._law = race_law(rule)
        rule_of_capacity = CapacityRule.of(capacity) if capacity else None
        self._limit = capacity_limit(rule_of_capacity, tokens_per_rank, ranks, experts, top_k)
        self._places = _kernels.Places(
            np.append(self.placement, ranks).astype(np.int32),
            np.append(self.placement // ranks_per_domain, self.domains).astype(np.int32),
        )

    def sample(self, layer: int, sample: int) -> RoutingCounts:
        """Counts of one microbatch in one MoE layer; `layer` counts MoE layers from 0."""
        R, N, E = self.ranks, self.domains, self.experts
        tallies = _kernels.Tallies(*(np.zeros(shape, np.int32) for shape in ((R, R), (R, R), (R, N), E, E)))
        for span, weights in self._spans(layer, sample):
            _kernels.sample_sources(
                self._law, weights, self._places, self._limit, span, self._seed(layer, sample), tallies
            )
        return RoutingCounts(tokens=np.full(R, self.tokens_per_rank, np.int32), **tallies._asdict())

    def choices(self, layer: int, sample: int, rank: int) -> NDArray[np.uint16]:
        """The routed experts [T, K] of one source rank's tokens, best first: what `sample` counts."""
        choices = np.empty(self.tokens_per_rank * self.top_k, np.uint16)
        S = self.sequences_per_rank
        span, weights = next(pair for pair in self._spans(layer, sample) if pair[0].first <= rank < pair[0].last)
        own = weights[(rank - span.first) * S :][:S] if len(weights) > 1 else weights
        _kernels.draw_source(self._law, own, self._seed(layer, sample), rank, S, choices)
        return choices.reshape(self.tokens_per_rank, self.top_k)

    def _seed(self, layer: int, sample: int) -> np.uint64:
        return np.uint64(self.streams.integer(f"routing/layer{layer}/sample{sample}/tokens"))

    def _spans(self, layer: int, sample: int) -> Iterator[tuple[_kernels.Span, Floats]]:
        """Source ranks in turn with the weights of their sequences, a bounded number of rows at a time."""
        R, T, S = self.ranks, self.tokens_per_rank, self.sequences_per_rank
        popularity, tilt = self.popularity[layer], self.profile.sequence_tilt
        if tilt == 0.0:
            yield _kernels.Span(0, R, T, S), popularity[None, :]
            return
        generator = self.streams.generator(f"routing/layer{layer}/sample{sample}")
        step = max(1, WEIGHT_ROWS // S)
        for first in range(0, R, step):
            last = min(first + step, R)
            tilts = generator.standard_normal(((last - first) * S, self.experts))
            yield _kernels.Span(first, last, T, S), normalized(np.log(popularity) + tilt * tilts)


def race_law(router: TopKRouter) -> _kernels.Law:
    """A router as a filter over the order in which experts arrive in a race.

    The n-th draw arrives at its mean time n/E (weights have mean 1), so that for "top2-sum" a group's score is that of
    the mean times of its two first experts; for "max" the order alone decides, exactly.
    """
    spec, E, K = router.spec, router.experts, router.top_k
    limited = spec.top_groups < spec.groups
    best = 0 if not limited else 2 if spec.group_score == "top2-sum" and spec.groups < E else 1
    groups = spec.groups if limited else 1
    words = ALIAS_DRAWS_PER_CHOICE * K + ALIAS_DRAWS
    scores = 1.0 / (router.race_offset + np.arange(1, words + E + 2) / E)
    return _kernels.Law(
        top_k=K,
        best=best,
        groups=groups,
        top_groups=spec.top_groups,
        draws=min(K + K * (1, 4, 7)[best] // 4, words + E),
        words=words,
        group=(np.arange(E + 1) * groups // E).astype(np.uint16),
        score=np.rint(scores / scores[0] * SCORE_SCALE).astype(np.int16),
    )


def capacity_limit(rule: CapacityRule | None, tokens: int, ranks: int, experts: int, top_k: int) -> _kernels.Limit:
    """A capacity rule, or none, for `ranks` sources of `tokens` each."""
    if rule is None:
        return _kernels.Limit(rows=-1, whole_group=False, choice_major=False)
    whole_group = rule.scope == "whole-group"
    rows = rule.capacity(tokens * (ranks if whole_group else 1), experts, top_k)
    return _kernels.Limit(min(rows, MOST_ROWS), whole_group, rule.order == "choice-major")
