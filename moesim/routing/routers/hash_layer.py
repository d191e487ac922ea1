"""Hash layers: a fixed table from token id to expert (Roller et al. 2021, Hash Layers For Large Sparse Models)."""

from __future__ import annotations

import heapq
from functools import lru_cache
from typing import Literal

import numpy as np

from moesim.errors import UserError
from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Integers, Router

VOCABULARY = 1 << 16
"""Token ids assumed where a batch brings none: between the vocabularies of 32,000 and of 128,000 now in use."""

ZIPF_EXPONENT, ZIPF_OFFSET = 1.0, 2.7
"""Frequency of the r-th most frequent word is 1 / (r + 2.7)^1: Zipf-Mandelbrot as Piantadosi 2014 gives it for
English (Zipf's word frequency law in natural language, Psychonomic Bulletin & Review 21; recalled; r from 1)."""


class Hash(Router):
    """The expert of a token's id by a fixed table; weight 1. Logits play no part.

    `table`: "balanced" gives ids, the most frequent first, to the expert with the least so far; "random" hashes them.
    Ids are taken to be in falling order of frequency. A batch without ids has them drawn by that frequency.
    """

    effect = Effect(
        bytes="One copy a token; destinations depend on the text alone.",
        drops="None of its own; with a capacity, tokens of the most frequent ids.",
        balance="That of token frequency: an id more frequent than 1 / E overloads its expert for good.",
    )
    only_top_k = 1

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token: each expert's share of token frequency, whatever the weights."""
        frequency = token_frequency(VOCABULARY)
        share = np.bincount(self.table(VOCABULARY), weights=frequency, minlength=self.experts).astype(np.float64)
        return np.broadcast_to(share, np.shape(weights)).copy()

    def table(self, vocabulary: int) -> Integers:
        """The expert [V] of each id; a larger vocabulary's table starts with a smaller one's."""
        return hash_table(vocabulary, self.experts, self.spec.table)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        ids = batch.token_id
        if ids is None and batch.generator is not None:
            ids = draw_token_ids(batch.generator, len(logits))
        if ids is None:
            raise UserError("router rule hash needs the batch's token_id, or its generator to draw ids with")
        ids = np.asarray(ids, dtype=np.int64)
        if ids.min(initial=0) < 0:
            raise UserError("token ids count from 0")
        vocabulary = max(VOCABULARY, 1 << int(ids.max(initial=0)).bit_length())
        experts = self.table(vocabulary)[ids][:, None]
        return Assignment(experts, np.full(experts.shape, self.spec.scale, dtype=np.float32))


def token_frequency(vocabulary: int) -> Floats:
    """Share [V] of text of each token id, the most frequent first: the law of Zipf and Mandelbrot."""
    shares = (np.arange(1, vocabulary + 1) + ZIPF_OFFSET) ** -ZIPF_EXPONENT
    return np.asarray(shares / shares.sum())


def draw_token_ids(generator: np.random.Generator, tokens: int, vocabulary: int = VOCABULARY) -> Integers:
    """Ids [T] of independent tokens by their frequency."""
    reached = np.cumsum(token_frequency(vocabulary))
    return np.minimum(np.searchsorted(reached, generator.random(tokens), side="right"), vocabulary - 1)


@lru_cache(maxsize=16)
def hash_table(vocabulary: int, experts: int, kind: Literal["random", "balanced"], seed: int = 0) -> Integers:
    """The expert [V] of each token id, ids in falling order of frequency; not to be changed."""
    table = _hashed(vocabulary, experts, seed) if kind == "random" else _greedy(vocabulary, experts)
    table.flags.writeable = False
    return table


def _hashed(vocabulary: int, experts: int, seed: int) -> Integers:
    """The finaliser of splitmix64 on each id (Steele et al. 2014): no order of ids is left in it."""
    golden, first, second = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    word = (np.arange(1, vocabulary + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 32)) * golden
    word = (word ^ (word >> np.uint64(30))) * first
    word = (word ^ (word >> np.uint64(27))) * second
    return ((word ^ (word >> np.uint64(31))) % np.uint64(experts)).astype(np.int64)


def _greedy(vocabulary: int, experts: int) -> Integers:
    """Each id to the emptiest expert, as the paper does; once for a vocabulary, not for tokens."""
    table = np.empty(vocabulary, dtype=np.int64)
    loads = [(0.0, expert) for expert in range(experts)]
    for token, share in enumerate(((np.arange(1, vocabulary + 1) + ZIPF_OFFSET) ** -ZIPF_EXPONENT).tolist()):
        load, expert = loads[0]
        table[token] = expert
        heapq.heapreplace(loads, (load + share, expert))
    return table
