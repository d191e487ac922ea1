"""Length of a step of candidates that share a layout: every schedule's critical path, and what its ranks wait for.

N candidates, P pipeline ranks, C chunks, K kinds of slots, L MoE layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.screening._rank_kernels import fill_waits, sum_by_rank
from moesim.screening._walk_kernels import Legs, slot_maps, walk_maps, walk_plain
from moesim.screening.columns import KINDS, Columns, distinct
from moesim.screening.exchanges import Moved
from moesim.screening.layouts import Cuts, Plan, lengths, plan, walked_plan
from moesim.screening.loads import Routed
from moesim.screening.memory import extended
from moesim.screening.once import Once, exposed, exposed_by_chunk
from moesim.screening.prices import Prices, apart, is_full, repeats_experts, tensor_parallel_seconds
from moesim.screening.templates import slots
from moesim.step.operations import Aside, Recompute

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Work(NamedTuple):
    """What the candidates' slots take: prices, routed rows and exchanges (None without experts), a hop and what of it
    holds up a slot [N], and what a step costs once."""

    prices: Prices
    routed: Routed | None
    moved: Moved | None
    hop: Floats
    message: Floats
    once: Once


class Steps(NamedTuple):
    """Seconds [N]: of a step, of what all ranks wait for communication in it, of the pipeline's bubble."""

    seconds: Floats
    exposed: Floats
    bubble: Floats


class Chunks(NamedTuple):
    """Seconds of each chunk [N, C + 1], the last of none: forward, backward without weight gradients, weight gradients
    of the busiest rank; the mean rank's compute of these; and both directions' compute at even load."""

    forward: Floats
    backward: Floats
    weight: Floats
    busy_forward: Floats
    busy_backward: Floats
    busy_weight: Floats
    even_forward: Floats
    even_backward: Floats


class Walked(NamedTuple):
    """When ranks end, seconds of a rank's slots, of waits for sharding's collectives before them, and of these and of
    messages [N, P]; seconds of the mean rank's compute in all slots [N]."""

    ends: Floats
    slots: Floats
    shards: Floats
    waits: Floats
    compute: Floats


def steps(cols: Columns, cut: Cuts, work: Work) -> Steps:
    """The step of every candidate of as many pipeline ranks and chunks."""
    chunks, once = _chunks(cols, cut, work), work.once
    # A DualPipe rank holds two chunks, and a microbatch passes only one of them there.
    half = np.where(cols.is_kind("dualpipe"), 0.5, 1.0)[:, None]
    ahead, back = (half * each[:, cut.on].sum(axis=-1) for each in (chunks.even_forward, chunks.even_backward))
    starts = exposed_by_chunk(cols, once.gather, ahead, once.share)
    reduce = exposed_by_chunk(cols, once.reduce, back, once.share)
    slots_a_rank = cols.chunks[:, None]
    shard_waits = (
        exposed(once.ahead, ahead / slots_a_rank, once.share),
        exposed(once.back, back / slots_a_rank, once.share),
    )
    walked = _walked(cols, cut, work, chunks, (starts, *shard_waits))
    seconds = (walked.ends + reduce + once.optimizer).max(axis=-1)
    around = starts.mean(axis=-1) + reduce.mean(axis=-1)
    slots_mean, waits_mean = walked.slots.mean(axis=-1), walked.shards.mean(axis=-1)
    bubble = seconds - slots_mean - waits_mean - around - once.optimizer.mean(axis=-1)
    waited = slots_mean - walked.compute / len(cut.on) + waits_mean + around
    return Steps(seconds, waited + tensor_parallel_seconds(cols, work.prices.alone, _mean_rows(cols, work)), bubble)


def _mean_rows(cols: Columns, work: Work) -> Floats:
    """Rows of the mean rank in a layer [N]."""
    if work.routed is None:
        return np.zeros(len(cols))
    sums = work.routed.mean_rows
    return np.asarray(sums[work.routed.cost, -1] / (sums.shape[1] - 1))


def _sums(cut: Cuts, sums: Floats, key: Ints) -> Floats:
    """Sums over each chunk's layers [N, C] from running sums [.., L + 1]."""
    own = sums[key[:, None], cut.first + cut.moe] - sums[key[:, None], cut.first]
    last = (sums[:, -1] - sums[:, -2])[key]
    return np.asarray(own + cut.extra * last[:, None])


def _chunks(cols: Columns, cut: Cuts, work: Work) -> Chunks:
    """Seconds of every chunk where nothing runs beside anything."""
    table = work.prices.alone
    moe = cut.experts.astype(np.float64)

    def plain(operation: int, phase: int) -> Floats:
        return np.asarray(table.plain[:, operation, phase, None])

    def alike(phase: int, router: bool) -> tuple[Floats, Floats]:
        """Seconds of all that ranks do alike: in layers, and in the embedding and heads."""
        layers = cut.dense * (plain(0, phase) + plain(3, phase)) + moe * plain(1, phase)
        ends = cut.any.embedding * plain(5, phase) + cut.any.heads * plain(6, phase)
        return layers + moe * plain(2, phase) if router else layers, ends

    layers, ends = zip(*(alike(phase, phase == 0) for phase in (0, 1, 3)), strict=True)
    experts, mean, exchange = _experts(cols, cut, work)
    full, again = is_full(cols)[:, None], repeats_experts(cols)[:, None]
    repeated = full * layers[0]
    forward = layers[0] + ends[0] + experts[0] + exchange
    backward = layers[1] + ends[1] + repeated + experts[1] + exchange + again * (experts[0] + exchange)
    weight = layers[2] + ends[2] + experts[2]
    busy = [layer + end + expert for layer, end, expert in zip(layers, ends, mean, strict=True)]
    busy[1] = busy[1] + repeated + again * mean[0]
    beside = apart(cols)[:, None]
    ahead = layers[0] + ends[0] + moe * (table.even[:, :1] + beside * plain(4, 0))
    # A router's backward runs with the attention's, and stands beside it once more here, as in `StepModel`.
    back = sum(alike(2, True)) + moe * (table.even[:, 2:3] + beside * plain(4, 2))
    return Chunks(*(np.pad(each, ((0, 0), (0, 1))) for each in (forward, backward, weight, *busy, ahead, back)))


def _experts(cols: Columns, cut: Cuts, work: Work) -> tuple[list[Floats], list[Floats], Floats]:
    """Seconds of each chunk's experts by phase, of the busiest and of the mean rank, and of its exchanges [N, C]."""
    nothing = np.zeros(cut.moe.shape)
    if work.routed is None or work.moved is None:
        return [nothing] * 3, [nothing] * 3, nothing
    found, law = work.routed, work.prices.alone.experts
    moe = cut.experts.astype(np.float64)
    pairs = ((found.products, found.rows), (found.mean_products, found.mean_rows))
    busiest, mean = (
        [
            law[:, phase, 0, None] * products + law[:, phase, 1, None] * rows + law[:, phase, 2, None] * moe
            for phase in (0, 1, 3)
        ]
        for products, rows in (tuple(_sums(cut, each, found.cost) for each in pair) for pair in pairs)
    )
    exchange = sum(_sums(cut, each, work.moved.key) for each in (work.moved.dispatch, work.moved.combine))
    return busiest, mean, np.asarray(exchange)


def _walked(cols: Columns, cut: Cuts, work: Work, chunks: Chunks, begin: tuple[Floats, Floats, Floats]) -> Walked:
    """Walks the schedule of every candidate; `begin` [N, P]: when ranks start, and what they wait before a forward and
    before a backward."""
    count, stages = len(cols), len(cut.on)
    found = Walked._make([*(np.zeros((count, stages)) for _ in range(4)), np.zeros(count)])
    full, again, hides = is_full(cols), repeats_experts(cols), cols.hides
    legs, asides = _legs(work) if hides.any() else None, dict[int, Aside]()
    first, key = distinct(
        cols.kind, cols.microbatches, cols.paired, hides, *(hides * each for each in (full, again, cols.rows.overlap))
    )
    for place, row in enumerate(first):
        mine = np.flatnonzero(key == place)
        batches, each = int(cols.microbatches[row]), []
        plans = [
            plan(KINDS[cols.kind[row]], stages, int(cols.chunks[row]), length, bool(cols.paired[row]))
            for length in lengths(stages, batches)
        ]
        longest = plans[-1]
        if hides[row]:
            recompute = Recompute(everything=bool(full[row]), experts=bool(again[row] and not full[row]))
            overlap = int(cols.rows.overlap[row])
            if overlap not in asides:
                asides[overlap] = cols.aside_at(int(row))
            spent, maps = _beside(cut, longest, (recompute, asides[overlap]), legs, mine)
        else:
            spent, maps = _plain(longest, chunks, mine), None
        shards, waits = (np.empty(spent.shape[1:]) for _ in range(2))
        fill_waits(longest.sorts, mine, begin[1], begin[2], work.message, shards, waits)
        hop = work.hop[mine]
        for made in plans:
            ends, sums = begin[0][mine], np.empty((4, len(mine), stages))
            taken, uses = walked_plan(made.name, longest.name)
            if maps is None:
                walk_plain(taken, made.outputs, spent[0], waits, hop, ends)
            else:
                walk_maps(taken, made.outputs, maps, waits, hop, ends)
            sum_by_rank(longest.stage, uses, spent, shards, waits, sums)
            each.append(Walked(ends, sums[0], sums[2], sums[3], sums[1].sum(axis=-1)))
        for target, values in zip(found, _longer(each, stages, batches), strict=True):
            target[mine] = values
    return found


def _longer(each: list[Walked], stages: int, batches: int) -> Walked:
    """One schedule's walk, or the walk of a long one by two shorter ones.

    Sums grow in a straight line. Ends do in the long run, with the slowest rank's own work or faster if ranks wait for
    each other.
    """
    if len(each) == 1:
        return each[0]
    near, far = lengths(stages, batches)
    sums = [extended(values, stages, batches) for values in zip(*each, strict=True)]
    busy = (each[1].slots + each[1].waits - each[0].slots - each[0].waits).max(axis=-1)
    apart = np.maximum((each[1].ends - each[0].ends).max(axis=-1), busy)
    ends = each[1].ends + (batches - far) / (far - near) * apart[:, None]
    return Walked(ends, *sums[1:])


def _plain(made: Plan, chunks: Chunks, mine: Ints) -> Floats:
    """Seconds of each kind of slot in which one operation follows the other, and of the mean rank's compute in it
    [2, N, K]."""
    found = np.zeros((2, len(mine), len(made.kinds)))
    for place, side in enumerate(chunks[:6]):
        found[place // 3] += side[mine[:, None], made.kinds[:, place % 3]]
    return found


def _beside(
    cut: Cuts, made: Plan, does: tuple[Recompute, Aside], legs: Legs | None, mine: Ints
) -> tuple[Floats, Floats]:
    """The same for slots in which exchanges run beside compute, and their maps of moments [N, K, 3, 3]."""
    if legs is None:
        raise InternalError("a slot hides exchanges that no candidate has")
    maps, spent = np.empty((len(mine), len(made.uses), 3, 3)), np.empty((2, len(mine), len(made.uses)))
    for number in np.unique(cut.which[mine]).tolist():
        places = np.flatnonzero(cut.which[mine] == number)
        slot_maps(slots(cut.layouts[number], made, *does), legs, mine[places], places, maps, spent)
    return spent, maps


def _legs(work: Work) -> Legs:
    """Seconds of the candidates' operations."""
    found, exchange, table = work.routed, work.moved, work.prices.alone
    if found is None or exchange is None:
        raise InternalError("a slot hides exchanges that the model does not have")
    return Legs(
        plain=table.plain,
        experts=table.experts,
        slowed=work.prices.slowed,
        cost=found.cost,
        moved=exchange.key,
        products=found.products,
        rows=found.rows,
        mean_products=found.mean_products,
        mean_rows=found.mean_rows,
        dispatch=exchange.dispatch,
        combine=exchange.combine,
    )
