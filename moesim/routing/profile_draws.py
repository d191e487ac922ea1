"""Draws from a fitted law: sequences that imitate those of its library, token by token or by counts alone.

n source ranks, S sequences, T tokens, L layers, E experts, K choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing import _stationary_kernels
from moesim.routing._kernels import Law
from moesim.routing.drawn import Drawn
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_law import Seeds, Simulated, draw_sequences, layer_law
from moesim.routing.sequences import depth, one_domain

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]

LENGTH_SPREAD = 0.5
MOST_FOR_MOMENTS = 256


class ProfileDraws:
    """Choices of one expert-parallel group's tokens, of any layer and sample, from a fitted profile.

    `router_law` says how many experts a token gets and how groups limit them. Each of `ranks` source ranks has
    `tokens_per_rank` tokens in `sequences_per_rank` sequences. The model's `layers` stand at the same relative depths
    as the profile's. `mix` and `moment` as in `RoutingProfile.chosen`; `blocks`: all sequences of a sample come from
    one domain, the domains in turn by their shares; each token `stands_for` so many. Pure, and safe to share between
    threads.
    """

    def __init__(
        self,
        profile: RoutingProfile,
        *,
        router_law: Law,
        layers: int,
        ranks: int,
        tokens_per_rank: int,
        sequences_per_rank: int,
        streams: Streams,
        mix: Mapping[str, float],
        moment: str | None,
        blocks: bool,
        stands_for: int = 1,
    ) -> None:
        if router_law.top_k > profile.experts:
            raise UserError(f"{router_law.top_k} experts a token: the profile has {profile.experts}")
        self.profile, self.law, self.streams = profile, router_law, streams
        self.ranks, self.tokens = ranks, tokens_per_rank
        self.sequences = max(1, min(sequences_per_rank, tokens_per_rank))
        self.layers = depth(layers, profile.layers)
        length = max(1, tokens_per_rank * stands_for // self.sequences)
        self.library = Library(profile, mix, moment, length, blocks, streams)
        self._laws = [layer_law(profile, int(layer), router_law.top_k) for layer in self.layers]

    def simulated(self, sample: int, first: int, last: int) -> Simulated:
        """Which library sequences the sequences of source ranks first..last-1 imitate."""
        S = self.sequences
        library = self.library.imitated(sample, self.ranks * S)[first * S : last * S]
        ends = np.arange(1, S + 1) * self.tokens // S
        start = np.append(0, (np.arange(last - first)[:, None] * self.tokens + ends).ravel())
        return Simulated(library, start.astype(np.int64), np.arange(first * S, last * S).astype(np.uint64))

    def draw(self, layer: int, sample: int, first: int, last: int) -> Drawn:
        """The choices of the tokens of source ranks first..last-1 in one MoE layer; `layer` counts from 0."""
        which = self.simulated(sample, first, last)
        seeds = Seeds(
            self.streams.integer(f"routing/sample{sample}/paths"),
            self.streams.integer(f"routing/layer{layer}/sample{sample}/noise"),
            self.streams.integer(f"routing/layer{layer}/sample{sample}/tokens"),
        )
        choices, races = draw_sequences(
            self.profile, int(self.layers[layer]), self._laws[layer], self.law, which, seeds
        )
        n = last - first
        return Drawn(choices.reshape(n, self.tokens, -1), races.weights, races.row.reshape(n, self.tokens))


class CountSampler:
    """Counts of one expert-parallel group without its tokens: fast, and close (see the benchmark of profiles).

    Sequences imitate the same library sequences as those of `ProfileDraws` with the same arguments. A sequence's
    copies of an expert are normal about their mean, with the variance of a two-state chain: chosen or not. `expected`
    turns rates [..., E] into the mean copies of a token, for routers that are no plain top-k (`Router.expected`).
    """

    def __init__(
        self,
        profile: RoutingProfile,
        *,
        layers: int,
        mix: Mapping[str, float],
        moment: str | None,
        ranks: int = 1,
        tokens_per_rank: int = 1,
        sequences_per_rank: int = 1,
        streams: Streams | None = None,
        blocks: bool = False,
        top_k: int | None = None,
        expected: Callable[[Floats], Floats] | None = None,
    ) -> None:
        self.profile, self.streams, self.expected = profile, streams or Streams(0), expected
        self.ranks, self.tokens = ranks, tokens_per_rank
        self.sequences = max(1, min(sequences_per_rank, tokens_per_rank))
        self.layers = depth(layers, profile.layers)
        self.library = Library(profile, mix, moment, max(1, tokens_per_rank // self.sequences), blocks, self.streams)
        own = top_k is None or top_k == profile.meta.top_k
        self.width = profile.mean_width() if own else np.full(profile.layers, float(top_k or 1))
        self._known: dict[int, tuple[Floats32, Floats32]] = {}

    def counts(self, sample: int) -> NDArray[np.int32]:
        """Copies [L, ranks, E] that each source rank's tokens send to each expert in one sample."""
        S, E, L = self.sequences, self.profile.experts, self.layers.size
        library = self.library.imitated(sample, self.ranks * S)
        edges = np.arange(S + 1) * self.tokens // S
        tokens = np.tile(np.diff(edges), self.ranks).astype(np.float32)[:, None]
        which, back = np.unique(library, return_inverse=True)
        chance, excess = (np.stack(tables) for tables in zip(*(self.sequence(int(s)) for s in which), strict=True))
        found = np.empty((L, self.ranks, E), np.int32)
        for layer, own in enumerate(self.layers):
            generator = self.streams.generator(f"routing/layer{layer}/sample{sample}/counts")
            spread = self.profile.residual[own].astype(np.float32)
            mean = chance[back, own]
            if spread.any():
                mean = noisy(mean, spread * generator.standard_normal(mean.shape, np.float32))
            copies = counted(mean, excess[back, own], tokens, generator)
            found[layer] = copies.reshape(self.ranks, S, E).sum(axis=1)
        return found

    def moments(self) -> tuple[Floats, Floats, Floats]:
        """Mean copies of a token at each expert [L, E], the variance of a sequence's own mean over sequences, and, in
        `blocks`, that part of it which all sequences of a batch share: its domain's (0 otherwise)."""
        odds = self.library.chance(None)
        known = np.flatnonzero(odds)
        if known.size > MOST_FOR_MOMENTS:
            points = (np.arange(MOST_FOR_MOMENTS) + 0.5) / MOST_FOR_MOMENTS
            known, many = np.unique(pick(odds, points), return_counts=True)
            part = many / many.sum()
        else:
            part = odds[known] / odds[known].sum()
        each = np.stack([self.sequence(int(s))[0][self.layers] for s in known]).astype(np.float64)
        mean = np.einsum("s,sle->le", part, each)
        own = each * (1.0 - each) * self.profile.residual[self.layers]
        whole, shared = np.einsum("s,sle->le", part, (each - mean) ** 2 + own**2), np.zeros_like(mean)
        for domain in np.unique(self.profile.domain[known]) if self.library.blocks else ():
            here = np.where(self.profile.domain[known] == domain, part, 0.0)
            shared += here.sum() * (np.einsum("s,sle->le", here / here.sum(), each) - mean) ** 2
        return mean, whole - shared, shared

    def sequence(self, s: int) -> tuple[Floats32, Floats32]:
        """Mean copies of a token of library sequence s [L, E], by the profile's layers, and how much more they vary
        than those of tokens that know nothing of each other [L, E]."""
        if s not in self._known:
            chance, excess = _stationary_kernels.sequence_chances(
                self.profile.affinity, np.einsum("r,lre->le", self.profile.tilt[s], self.profile.basis),
                self.profile.share[s].mean(axis=0), self.width, self.profile.repeat,
            )  # fmt: skip
            if self.expected is not None:
                chance = self.expected(-np.log1p(-np.minimum(chance, 1.0 - 1e-9)) + 1e-12)
            self._known[s] = chance.astype(np.float32), excess.astype(np.float32)
        return self._known[s]


class Library:
    """Which library sequences are imitated, by domain, moment of training and length; one choice for all layers.

    A simulated sequence keeps its taste for its whole length, however long the imitated one is.
    """

    def __init__(
        self,
        profile: RoutingProfile,
        mix: Mapping[str, float],
        moment: str | None,
        length: int,
        blocks: bool,
        streams: Streams,
    ) -> None:
        self.domain, self.blocks, self.streams = profile.domain, blocks, streams
        self.whole = like_in_length(profile, profile.chosen(mix, moment), length)

    def chance(self, sample: int | None) -> Floats:
        """Chance of each library sequence [S] in a sample, or (None) on the whole."""
        if not self.blocks or sample is None:
            return self.whole
        alone = one_domain(self.whole, self.domain, sample)
        return np.asarray(alone / alone.sum())

    def imitated(self, sample: int, many: int) -> Integers:
        """The library sequence of each of a sample's sequences."""
        uniform = self.streams.generator(f"routing/sample{sample}/sequences").random(many)
        return pick(self.chance(sample), uniform)


def noisy(chance: Floats32, noise: Floats32) -> Floats32:
    """Chances [rows, E] after their log rates moved by `noise`, their sum kept (two steps of Newton's)."""
    rate = -np.log1p(-np.minimum(chance, np.float32(1.0 - 1e-6))) * np.exp(noise)
    wanted, left = chance.sum(axis=1, keepdims=True), np.exp(-rate)
    scale = np.ones_like(wanted)
    for _ in range(2):
        short = wanted - (1.0 - left).sum(axis=1, keepdims=True)
        scale = np.maximum(scale + short / np.maximum((rate * left).sum(axis=1, keepdims=True), 1e-9), 0.0)
        left = np.exp(-rate * scale)
    return np.asarray(1.0 - left, np.float32)


def counted(chance: Floats32, excess: Floats32, tokens: Floats32, generator: np.random.Generator) -> Floats32:
    """Whole copies [rows, E] of `tokens` [rows, 1] tokens, rounded at random so that means stay."""
    spread = np.sqrt(tokens * chance * (1.0 - chance) * excess)
    copies = tokens * chance + spread * generator.standard_normal(chance.shape, np.float32)
    copies = np.clip(copies, 0.0, tokens)
    copies *= tokens * chance.sum(axis=1, keepdims=True) / np.maximum(copies.sum(axis=1, keepdims=True), 1e-9)
    copies += generator.random(chance.shape, np.float32)
    return np.asarray(np.minimum(np.floor(copies), tokens), np.float32)


def pick(chance: Floats, uniform: Floats) -> Integers:
    """Which entry of `chance` (sums to 1) each uniform number falls into."""
    found = np.searchsorted(np.cumsum(chance), uniform * chance.sum(), side="right")
    return np.asarray(np.minimum(found, np.flatnonzero(chance)[-1]), np.int64)


def like_in_length(profile: RoutingProfile, chance: Floats, length: float) -> Floats:
    """The chances with sequences of similar length preferred inside each domain, whose shares stay."""
    away = np.log(profile.length) - np.log(length)
    domains = len(profile.meta.domains)
    nearest = np.full(domains, np.inf)
    np.minimum.at(nearest, profile.domain[chance > 0.0], np.abs(away)[chance > 0.0])
    near = np.where(chance > 0.0, np.abs(away) - np.where(np.isfinite(nearest), nearest, 0.0)[profile.domain], 0.0)
    liked = chance * np.exp(-0.5 * (near / LENGTH_SPREAD) ** 2)
    before = np.bincount(profile.domain, weights=chance, minlength=domains)
    after = np.bincount(profile.domain, weights=liked, minlength=domains)
    return np.asarray(liked * (before / np.where(after > 0.0, after, 1.0))[profile.domain])
