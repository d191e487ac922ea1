"""Choices by a simple law of popularity: every token's experts arrive as in a race, and the rule filters the order.

T tokens of a source rank, E experts, K choices, R ranks, S sequences of a source rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing import _kernels
from moesim.routing.drawn import Drawn
from moesim.routing.loads import normalized, tenant_logs
from moesim.routing.routers.base import Router
from moesim.routing.routers.top_k import TopKRouter
from moesim.specs.routing import LoadProfile

Floats = NDArray[np.float64]

ALIAS_DRAWS_PER_CHOICE, ALIAS_DRAWS = 4, 32
SCORE_SCALE = 2.0**14 - 1
MOST_EXPERTS = 2**16 - 1
MOST_ROWS = 2**31 - 1
WEIGHT_ROWS = 64


class RaceDraws:
    """Draws by `popularity` [L, E], that of the choices made, any selection bias included; a sequence has a tilt and a
    tenant of its own where the profile says so. With a rule that works by sequence, all its tokens choose alike.

    Pure, safe to share between threads, and free of Python's lock while it draws.
    """

    def __init__(
        self,
        rule: Router,
        profile: LoadProfile,
        popularity: Floats,
        *,
        ranks: int,
        tokens_per_rank: int,
        sequences_per_rank: int,
        streams: Streams,
    ) -> None:
        if rule.experts > MOST_EXPERTS:
            raise UserError(f"{rule.experts} experts: at most {MOST_EXPERTS} can be sampled")
        if ranks * tokens_per_rank > MOST_ROWS:
            raise UserError(f"{ranks} ranks of {tokens_per_rank} tokens: at most {MOST_ROWS} tokens can be sampled")
        self.rule, self.profile, self.popularity, self.streams = rule, profile, popularity, streams
        self.ranks, self.tokens_per_rank = ranks, tokens_per_rank
        self.sequences_per_rank = min(max(1, sequences_per_rank), tokens_per_rank)
        self._law = race_law(rule)

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of source ranks `first` to `last` - 1."""
        T, S, K = self.tokens_per_rank, self.sequences_per_rank, self.rule.top_k
        by_sequence = self.rule.by_sequence
        drawn = S if by_sequence else T
        choices = np.empty((last - first, drawn * K), np.uint16)
        weights = []
        for span, rows in self._spans(layer, sample, first, last, drawn):
            part = choices[span.first - first : span.last - first]
            _kernels.draw_sources(self._law, rows, span, self._seed(layer, sample), part)
            weights.append(rows)
        shared = len(weights[0]) == 1 and self._alike
        row = self._rows(last - first)
        found = choices.reshape(last - first, drawn, K)
        if by_sequence:
            found = (self._by_task(layer, sample, first, last) if self.rule.spec.tasks else found)[:, row[0]]
        if shared:
            row = np.zeros_like(row)
        return Drawn(found, np.concatenate(weights), row)

    def _by_task(self, layer: int, sample: int, first: int, last: int) -> NDArray[np.uint16]:
        """Choices [n, S, K] of sequences that do as their task does: the same for all of it, in every sample."""
        tasks, S = self.rule.spec.tasks, self.sequences_per_rank
        table = np.empty((1, tasks * self.rule.top_k), np.uint16)
        span = _kernels.Span(0, 1, tasks, 1)
        seed = np.uint64(self.streams.integer(f"routing/layer{layer}/tasks"))
        _kernels.draw_sources(self._law, self.popularity[layer][None, :], span, seed, table)
        whose = self.streams.generator(f"routing/sample{sample}/tasks").integers(0, tasks, self.ranks * S)
        chosen = table.reshape(tasks, -1)[whose[first * S : last * S]]
        return np.asarray(chosen.reshape(last - first, S, -1))

    @property
    def _alike(self) -> bool:
        """Whether all sequences draw from the same weights."""
        return self.profile.sequence_tilt == 0.0 and self.profile.tenants is None

    def _rows(self, sources: int) -> NDArray[np.int32]:
        """Each token's sequence among all of the sources' [n, T]; sequences are of equal length, to a token."""
        T, S = self.tokens_per_rank, self.sequences_per_rank
        own = np.searchsorted(np.arange(1, S) * T // S, np.arange(T), side="right")
        return (np.arange(sources)[:, None] * S + own).astype(np.int32)

    def _seed(self, layer: int, sample: int) -> np.uint64:
        return np.uint64(self.streams.integer(f"routing/layer{layer}/sample{sample}/tokens"))

    def _spans(
        self, layer: int, sample: int, first: int, last: int, drawn: int
    ) -> Iterator[tuple[_kernels.Span, Floats]]:
        """Source ranks in turn with the weights of their sequences, a bounded number of rows at a time."""
        S, popularity = self.sequences_per_rank, self.popularity[layer]
        if self._alike:
            yield _kernels.Span(first, last, drawn, S), popularity[None, :]
            return
        step = max(1, WEIGHT_ROWS // S)
        for begin in range(first - first % step, last, step):
            logs = np.log(popularity) + self._sequence_logs(layer, sample, begin // step, step)
            end = min(begin + step, last)
            kept = slice((max(begin, first) - begin) * S, (end - begin) * S)
            yield _kernels.Span(max(begin, first), end, drawn, S), normalized(logs[kept])

    def _sequence_logs(self, layer: int, sample: int, block: int, step: int) -> Floats:
        """What the sequences of one block of source ranks add to the log weights [step * S, E]."""
        rows, experts = step * self.sequences_per_rank, self.rule.experts
        generator = self.streams.generator(f"routing/layer{layer}/sample{sample}/block{block}")
        logs = self.profile.sequence_tilt * generator.standard_normal((rows, experts))
        if self.profile.tenants is not None:
            # A tenant is a tenant in every layer.
            whose = self.streams.generator(f"routing/sample{sample}/block{block}/tenants")
            tenants = tenant_logs(self.profile.tenants, experts)
            logs = logs + tenants[whose.integers(0, len(tenants), rows)]
        return np.asarray(logs)


def race_law(router: Router) -> _kernels.Law:
    """A router as a filter over the order in which experts arrive in a race.

    The n-th draw arrives at its mean time n/E (weights have mean 1), so that for "top2-sum" a group's score is that of
    the mean times of its two first experts; for "max" the order alone decides, exactly.
    """
    spec, E, K = router.spec, router.experts, router.top_k
    grouped = isinstance(router, TopKRouter) and spec.top_groups < spec.groups
    best = 0 if not grouped else 2 if spec.group_score == "top2-sum" and spec.groups < E else 1
    offset = router.race_offset if isinstance(router, TopKRouter) else 0.0
    groups = spec.groups if grouped else 1
    words = ALIAS_DRAWS_PER_CHOICE * K + ALIAS_DRAWS
    scores = 1.0 / (offset + np.arange(1, words + E + 2) / E)
    return _kernels.Law(
        top_k=K,
        best=best,
        groups=groups,
        top_groups=spec.top_groups if grouped else 1,
        draws=min(K + K * (1, 4, 7)[best] // 4, words + E),
        words=words,
        group=(np.arange(E + 1) * groups // E).astype(np.uint16),
        score=np.rint(scores / scores[0] * SCORE_SCALE).astype(np.int16),
    )
