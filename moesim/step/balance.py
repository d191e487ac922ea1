"""Where to cut a model's layers into virtual stages so that pipeline ranks have equal work.

L layers, C chunks, N trial cuts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.scenario.scenario import Scenario
from moesim.step.mover import mover
from moesim.step.prices import Prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS_A_LAYER = 20
"""Weights are rounded to this part of a layer: finer differences are not known, and near-alike scenarios cut alike."""
MOVES = 200


class Weights(NamedTuple):
    """Work of each layer, and of what stands before the first and behind the last, in layers of the heaviest kind."""

    layers: tuple[float, ...]
    before: float
    behind: float


def pairs_slots(scenario: Scenario) -> bool:
    """Whether a forward runs beside a backward: wanted, possible in the schedule, and there are exchanges."""
    wanted = scenario.overlap.expert_communication and scenario.schedule_kind != "gpipe"
    return wanted and scenario.exchanges_tokens


def weights(scenario: Scenario) -> Weights:
    """Priced seconds of a microbatch's forward and backward at even load, by layer kind: compute, and exchanges where
    they do not run beside it."""
    prices = Prices(scenario, 0, pairs_slots(scenario))
    again = scenario.recompute == "full"
    seconds = {}
    for kind in set(scenario.model.layer_kinds):
        parts = [prices.even(name, kind) for name in _operations(scenario, kind)]
        seconds[kind] = sum(part.total + again * part.forward for part in parts)
    if scenario.exchanges_tokens:
        exchanges, compute = _exchange_seconds(scenario), seconds["moe"]
        seconds["moe"] = max(compute, exchanges) if pairs_slots(scenario) else compute + exchanges
    mtp = scenario.model.mtp_layers
    head = (1 + mtp) * prices.even("head", scenario.model.layer_kinds[-1]).total
    last = mtp * seconds[scenario.model.layer_kinds[-1]] + head
    first = prices.even("embedding", scenario.model.layer_kinds[0]).total
    unit = max(seconds.values()) / STEPS_A_LAYER
    layers = {kind: round(value / unit) / STEPS_A_LAYER for kind, value in seconds.items()}
    each = tuple(layers[kind] for kind in scenario.model.layer_kinds)
    return Weights(each, round(first / unit) / STEPS_A_LAYER, round(last / unit) / STEPS_A_LAYER)


def _operations(scenario: Scenario, kind: str) -> tuple[str, ...]:
    if kind != "moe":
        return ("attention", "dense")
    return ("attention", "router", "experts", *["shared"] * scenario.shared_experts_apart)


def _exchange_seconds(scenario: Scenario) -> float:
    """Seconds of an MoE layer's dispatches and combines, forward and backward."""
    even = mover(scenario, "port-load").even
    again = scenario.recompute == "full" or "moe" in scenario.recomputed_modules
    return (2 + again) * float(even.dispatch.busiest.mean() + even.combine.busiest.mean())


@lru_cache(maxsize=4096)
def cut(work: Weights, stages: int, count: int, mirrored: bool) -> tuple[int, ...]:
    """Layers of each of `count` chunks that leave the busiest of `stages` pipeline ranks least to do; then as even as
    can be between ranks, then between chunks.

    `mirrored`: a rank holds a chunk and its mirror image, else every `stages`-th. Found by moving single layers from
    the chunks of the busiest rank, starting where each layer went to the rank with least work. Only the first and the
    last chunk may stay without a layer.
    """
    rank_of = np.arange(count) % stages
    if mirrored:
        rank_of = np.minimum(np.arange(count), count - 1 - np.arange(count))
    best = _dealt(work, rank_of, count)
    score = _scores(work, rank_of, best[None])[0]
    for _ in range(MOVES):
        trials = _moved(best)
        if not len(trials):
            break
        scores = _scores(work, rank_of, trials)
        first = np.lexsort(scores.T[::-1])[0]
        if tuple(scores[first]) >= tuple(score):
            break
        best, score = trials[first], scores[first]
    return tuple(best.tolist())


def _dealt(work: Weights, rank_of: Ints, count: int) -> Ints:
    """Every layer to the rank with least work, there to the chunk with least."""
    ranks, chunks, sizes = np.zeros(rank_of.max() + 1), np.zeros(count), np.zeros(count, dtype=np.int64)
    each = float(np.mean(work.layers))
    for chunk, extra in ((0, work.before), (count - 1, work.behind)):
        chunks[chunk] += extra
        ranks[rank_of[chunk]] += extra
    may_be_empty = np.isin(np.arange(count), (0, count - 1))
    for left in range(len(work.layers), 0, -1):
        needy = (sizes == 0) & ~may_be_empty
        closed = ~needy if left <= needy.sum() else np.zeros(count, dtype=bool)
        chunk = np.lexsort((np.arange(count), chunks, ranks[rank_of], closed))[0]
        sizes[chunk] += 1
        chunks[chunk] += each
        ranks[rank_of[chunk]] += each
    return sizes


def _moved(sizes: Ints) -> Ints:
    """All cuts [N, C] with one layer in another chunk."""
    count = len(sizes)
    giver, taker = (found.ravel() for found in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
    least = 1 - np.isin(np.arange(count), (0, count - 1))
    allowed = (giver != taker) & (sizes > least)[giver]
    trials = np.tile(sizes, (int(allowed.sum()), 1))
    rows = np.arange(len(trials))
    trials[rows, giver[allowed]] -= 1
    trials[rows, taker[allowed]] += 1
    return trials


def _scores(work: Weights, rank_of: Ints, sizes: Ints) -> Floats:
    """What a cut is judged by [N, 4]: work of the busiest rank and chunk, squares over ranks, squares over chunks."""
    upto = np.concatenate([[0.0], np.cumsum(work.layers)])
    ends = np.cumsum(sizes, axis=1)
    chunks = upto[ends] - upto[ends - sizes]
    chunks[:, 0] += work.before
    chunks[:, -1] += work.behind
    ranks = np.zeros((len(sizes), rank_of.max() + 1))
    for chunk, rank in enumerate(rank_of):
        ranks[:, rank] += chunks[:, chunk]
    found = [ranks.max(axis=1), chunks.max(axis=1), (ranks**2).sum(axis=1), (chunks**2).sum(axis=1)]
    return np.round(np.stack(found, axis=1), 6)
