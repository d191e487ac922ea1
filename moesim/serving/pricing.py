"""What an engine's iterations compute, as the iteration law takes it: in all, and on the busiest attention replica.

Of each amount the busiest replica is the one with most of it, so that where prompts and long contexts fall on different
replicas an iteration is priced slightly too long. B iterations, R attention replicas.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.iteration.batch import Batch
from moesim.iteration.offload import Missing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Law(Protocol):
    """The law of one iteration, as far as the simulation asks it."""

    def seconds(self, batch: Batch, imbalance: Floats | None = None, missing: Missing | None = None) -> Floats:
        """Length of each iteration [B]; `imbalance` [B]: max/mean of its rows over expert-parallel ranks; `missing`:
        experts that it fetches from host memory."""
        ...

    def kv_transfer_seconds(self, tokens: float) -> Floats | float:
        """How long the KV cache of so many tokens takes from a replica of this instance to another instance."""
        ...


def one_iteration(tokens: Floats, pairs: Floats, decoders: Ints, context: Floats) -> Batch:
    """One iteration from what each replica has of it, [R] each: new prompt tokens, their token pairs, decoding
    requests, their context."""
    found = np.array([tokens, pairs, decoders, context], np.float64)
    total, most = found.sum(axis=1)[:, None], found.max(axis=1)[:, None]
    return Batch(total[0], total[1], total[2], total[3], Batch(most[0], most[1], most[2], most[3]))


def decode_iterations(decoders: Ints, context: Floats, growth: Floats, steps: Floats) -> Batch:
    """Decode iterations after `steps` [B] further ones; replicas have requests, context and its growth [R]."""
    none = np.zeros(len(steps))
    held = context[:, None] + growth[:, None] * steps
    counts = decoders.astype(np.float64)
    busiest = Batch(none, none, none + counts.max(), held.max(axis=0))
    return Batch(none, none, none + counts.sum(), held.sum(axis=0), busiest)


def expert_tokens(batch: Batch, positions: int) -> Floats:
    """Tokens that go through the experts [B]; a decoding request has so many `positions`."""
    return np.asarray(batch.prefill_tokens + batch.decode_requests * positions)
