"""What the pictures and their tables show, as small arrays drawn from a result; no drawing here.

L layers, S samples, E experts, R ranks, B blocks, N operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.provenance import Quantity
from moesim.results.result import Columns

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ExpertLoad:
    """How evenly tokens fall on experts.

    `load`: [L, E] tokens over the layer's mean, mean over samples. `expert_peak`, `rank_peak`: [L] busiest over mean,
    mean over samples, of routed tokens an expert and of kept rows a rank. `idle`: [L] share of experts without a token.
    `rank`: [E] the rank that holds the expert, or None where that differs between layers or copies.
    """

    layers: Integers
    experts: Integers
    load: Floats
    expert_peak: Floats
    rank_peak: Floats
    idle: Floats
    rank: Integers | None


@dataclass(frozen=True)
class Runs:
    """Whole-step bars: one entry a (stage, phase, microbatch, chunk), its first begin and last end in seconds."""

    stage: Integers
    phase: list[str]
    microbatch: Integers
    chunk: Integers
    begin: Floats
    end: Floats


@dataclass(frozen=True)
class KindRow:
    """Total of one (stream, kind): operations, seconds on the mean rank a stage, bytes of all ranks."""

    stream: str
    kind: str
    operations: int
    seconds: float
    bytes_up: float
    bytes_out: float


def categories(column: NDArray[Any]) -> tuple[list[str], Integers]:
    """Distinct names of a text column, sorted, and [N] the place of each entry among them."""
    texts = list(map(str, column.tolist()))
    names = sorted(set(texts))
    place = {name: index for index, name in enumerate(names)}
    return names, np.fromiter((place[text] for text in texts), np.int64, len(texts))


def sorted_parts(parts: dict[str, float]) -> list[tuple[str, float, float]]:
    """(part, value, share of the sum), the largest first; parts of zero are left out."""
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return [(name, value, value / total if total else 0.0) for name, value in ordered if value]


def gpu_memory(summary: dict[str, Quantity]) -> float | None:
    """Bytes that the GPU has, from the two metrics that compare against it."""
    used, ratio = summary.get("memory_per_gpu"), summary.get("fits_in_memory")
    return used.value / ratio.value if used and ratio and ratio.value > 0 else None


def expert_load(routing: Columns) -> ExpertLoad:
    """The load of every (layer, expert) from routing columns; copies of one expert on several ranks are added up."""
    layers, layer = np.unique(routing["layer"], return_inverse=True)
    samples, sample = np.unique(routing["sample"], return_inverse=True)
    experts, expert = np.unique(routing["expert"], return_inverse=True)
    ranks, rank = np.unique(routing["rank"], return_inverse=True)
    slot = layer * len(samples) + sample
    tokens = _total(slot, expert, routing["tokens"], (len(layers), len(samples), len(experts)))
    rows = _total(slot, rank, routing["kept"], (len(layers), len(samples), len(ranks)))
    mean = tokens.mean(axis=(1, 2), keepdims=True)
    return ExpertLoad(
        layers=layers.astype(np.int64),
        experts=experts.astype(np.int64),
        load=(tokens / np.maximum(mean, np.finfo(np.float64).tiny)).mean(axis=1),
        expert_peak=_peak(tokens),
        rank_peak=_peak(rows),
        idle=(tokens == 0).mean(axis=(1, 2)),
        rank=_rank_of_expert(expert, routing["rank"], len(experts)),
    )


def _total(slot: NDArray[Any], place: NDArray[Any], weight: NDArray[Any], shape: tuple[int, int, int]) -> Floats:
    size = int(np.prod(shape))
    totals = np.bincount(slot * shape[2] + place, weights=weight.astype(np.float64), minlength=size)
    return np.asarray(totals.reshape(shape), np.float64)


def _peak(load: Floats) -> Floats:
    """[L] mean over samples of max/mean of `load` [L, S, places]; 1 where nothing was routed."""
    mean = load.mean(axis=2)
    ratio = np.divide(load.max(axis=2), mean, out=np.ones_like(mean), where=mean > 0)
    return np.asarray(ratio.mean(axis=1), np.float64)


def _rank_of_expert(expert: NDArray[Any], rank: NDArray[Any], experts: int) -> Integers | None:
    holder = np.zeros(experts, np.int64)
    holder[expert] = rank
    return holder if bool((holder[expert] == rank).all()) else None


def rank_boundaries(rank: Integers | None, limit: int = 32) -> list[int]:
    """Expert positions where a new rank begins, for contiguous placements of 2 to `limit` ranks; else none."""
    if rank is None or bool((np.diff(rank) < 0).any()):
        return []
    starts = np.flatnonzero(np.diff(rank)) + 1
    return [int(start) for start in starts] if 0 < len(starts) < limit else []


def blocks(size: int, limit: int) -> tuple[int, Integers]:
    """Block width and block starts [B] that cut `size` places into at most `limit` blocks of one width."""
    width = -(-size // limit)
    return width, np.arange(0, size, width, dtype=np.int64)


def block_mean(matrix: Floats, limit: int) -> tuple[int, Floats]:
    """Block width and the mean of every block of a square matrix, cut to at most `limit` blocks a side."""
    width, starts = blocks(len(matrix), limit)
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    sizes = np.diff(np.append(starts, len(matrix)))
    return width, sums / np.outer(sizes, sizes)


@dataclass(frozen=True)
class RankTotals:
    """Bytes in one dispatch of the ranks from `first` on: mean a rank to itself, to others, and from others."""

    first: int
    own: float
    sent: float
    received: float


def rank_totals(traffic: Floats, limit: int = 64) -> list[RankTotals]:
    """What each of at most `limit` ranks or blocks of ranks keeps, sends and receives; `traffic`: [R, R] bytes."""
    _, starts = blocks(len(traffic), limit)
    sizes = np.diff(np.append(starts, len(traffic)))
    own = np.diagonal(traffic)
    columns = (own, traffic.sum(axis=1) - own, traffic.sum(axis=0) - own)
    means = np.stack([np.add.reduceat(column, starts) / sizes for column in columns], axis=1)
    return [RankTotals(int(first), *map(float, row)) for first, row in zip(starts, means, strict=True)]


def first_step(columns: Columns) -> Columns:
    """The operations of the first simulated step."""
    chosen = columns["step"] == columns["step"].min()
    return {name: column[chosen] for name, column in columns.items()}


def even_subset(values: NDArray[Any], count: int) -> NDArray[Any]:
    """At most `count` of the distinct values, evenly spread, with the first and the last."""
    distinct = np.unique(values)
    if len(distinct) <= count:
        return distinct
    places = np.linspace(0, len(distinct) - 1, count).round().astype(np.int64)
    return np.asarray(distinct[places])


def whole_step(columns: Columns, limit: int) -> Runs:
    """Bars of the pipeline, at most `limit`: stages are left out evenly first, then the latest bars."""
    runs = _runs(columns)
    stages = np.unique(runs.stage)
    if len(runs.stage) > limit:
        fitting = max(2, len(stages) * limit // len(runs.stage))
        runs = _pick(runs, np.flatnonzero(np.isin(runs.stage, even_subset(stages, fitting))))
    if len(runs.stage) > limit:
        runs = _pick(runs, np.sort(np.argsort(runs.begin, kind="stable")[:limit]))
    return runs


def _runs(columns: Columns) -> Runs:
    """One bar a (stage, phase, microbatch, chunk) over the streams that work on a microbatch.

    What is computed again belongs to the backward that it serves.
    """
    chosen = np.flatnonzero((columns["stream"] == "compute") | (columns["stream"] == "communication"))
    if not len(chosen):
        none = np.zeros(0, np.int64)
        return Runs(none, [], none, none, np.zeros(0), np.zeros(0))
    phases, phase = categories(np.where(columns["phase"] == "recompute", "backward", columns["phase"])[chosen])
    stage, microbatch, chunk = (columns[name][chosen].astype(np.int64) for name in ("stage", "microbatch", "chunk"))
    sizes = (int(stage.max()) + 1, len(phases), int(microbatch.max()) + 2, int(chunk.max()) + 2)
    keys = np.ravel_multi_index((stage, phase, microbatch + 1, chunk + 1), sizes)
    distinct, group = np.unique(keys, return_inverse=True)
    begin = np.full(len(distinct), np.inf)
    end = np.full(len(distinct), -np.inf)
    np.minimum.at(begin, group, columns["begin_mean"][chosen])
    np.maximum.at(end, group, columns["end_mean"][chosen])
    stage, phase, microbatch, chunk = np.unravel_index(distinct, sizes)
    return Runs(stage, [phases[code] for code in phase], microbatch - 1, chunk - 1, begin, end)


def _pick(runs: Runs, chosen: NDArray[Any]) -> Runs:
    phase = [runs.phase[index] for index in chosen]
    numbers = (runs.microbatch[chosen], runs.chunk[chosen], runs.begin[chosen], runs.end[chosen])
    return Runs(runs.stage[chosen], phase, *numbers)


def overlapping(runs: Runs) -> bool:
    """Whether bars of one stage cover each other, as in schedules that run forward beside backward."""
    order = np.lexsort((runs.begin, runs.stage))
    stage, begin, end = runs.stage[order], runs.begin[order], runs.end[order]
    slack = 1e-3 * float(np.median(end - begin)) if len(end) else 0.0
    return bool(((stage[1:] == stage[:-1]) & (begin[1:] < end[:-1] - slack)).any())


def middle_window(columns: Columns, stages: int, limit: int) -> Columns:
    """At most `limit` operations around the middle one, on at most `stages` stages, in order of begin."""
    chosen = np.flatnonzero(np.isin(columns["stage"], even_subset(columns["stage"], stages)))
    chosen = chosen[np.argsort(columns["begin_mean"][chosen], kind="stable")]
    if len(chosen) > limit:
        first = (len(chosen) - limit) // 2
        chosen = chosen[first : first + limit]
    return {name: column[chosen] for name, column in columns.items()}


def by_kind(columns: Columns) -> list[KindRow]:
    """Totals of the operations by stream and kind, the longest first; seconds are the mean over stages."""
    kinds, kind = categories(columns["kind"])
    streams, stream = categories(columns["stream"])
    stages = len(np.unique(columns["stage"]))
    pair = stream * len(kinds) + kind
    size = len(kinds) * len(streams)
    count = np.bincount(pair, minlength=size)
    seconds = np.bincount(pair, weights=columns["end_mean"] - columns["begin_mean"], minlength=size) / stages
    up, out = (np.bincount(pair, weights=columns[name], minlength=size) for name in ("bytes_up", "bytes_out"))
    rows = [
        KindRow(streams[p // len(kinds)], kinds[p % len(kinds)], int(count[p]), *map(float, numbers))
        for p, numbers in enumerate(zip(seconds, up, out, strict=True))
        if count[p]
    ]
    return sorted(rows, key=lambda row: -row.seconds)
