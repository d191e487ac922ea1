"""Memory of every candidate's fullest GPU, by part: the laws of `step.memory` and `costs.memory` over arrays.

C candidates of one layout, P pipeline ranks, V chunks a rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.costs import memory as law
from moesim.costs.memory import Shards
from moesim.screening._rank_kernels import fullest_moments
from moesim.screening.columns import KINDS, Columns, Keyed, distinct
from moesim.screening.layouts import Cuts, lengths, plan
from moesim.screening.loads import Routed
from moesim.screening.once import Rings, held, rings
from moesim.step.memory import gathered_at_once, split_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STATES = ("weights", "gradients", "optimizer")
PARTS = (
    *STATES,
    *(f"expert {name}" for name in STATES),
    "activations",
    "temporaries",
    "logits",
    "dispatch buffers",
    "fragmentation",
    "optimizer step",
    "communication buffers",
    "libraries",
)
_PASSING = slice(6, 10)


class Sizes(NamedTuple):
    """What memory follows from, by key: groups that sum gradients; bytes `tokens` [.., 8] that a token leaves in a
    layer's attention, dense part, experts, and for each routed row: those kept, and all there are; parameters `rooms`
    [.., 2] that full sharding gathers at once, of the dense part and of experts."""

    groups: tuple[Rings, Rings]
    tokens: Keyed
    rooms: Keyed

    def rows(self, chosen: Ints) -> Sizes:
        """Those of some candidates."""
        dense, expert = (ring.rows(chosen) for ring in self.groups)
        return Sizes((dense, expert), self.tokens.rows(chosen), self.rooms.rows(chosen))


def sizes(cols: Columns) -> Sizes:
    """Asks the laws once for each key."""
    rows = cols.rows
    rooms = cols.keyed(
        "rooms", lambda row: gathered_at_once(cols.scenario_at(row)), rows.tensor, rows.expert, rows.expert_tensor
    )
    return Sizes(rings(cols), _token_bytes(cols), rooms)


def memory_parts(cols: Columns, cut: Cuts, known: Sizes, routed: Routed | None, buffers: Keyed | None) -> Floats:
    """Bytes by part [C, parts] on the fullest GPU."""
    shape = (len(cols), len(cut.on))
    parts = np.zeros((*shape, len(PARTS)))
    update = _states(cols, cut, known, parts)
    kept = most = np.zeros(shape)
    if routed is not None:
        kept, most = (values[routed.group[:, None], cut.devices] for values in (routed.kept, routed.most))
    parts[..., 6], parts[..., 7], parts[..., 8] = _activations(cols, cut, known.tokens.each, kept)
    if buffers is not None:
        parts[..., 9] = _exchange(cols, cut, buffers.each, np.maximum(kept, most))
    parts[..., 10] = float(law.coefficients()["fragmentation"]) * parts[..., _PASSING].sum(axis=-1)
    passing = parts[..., 6:11]
    larger = update > passing.sum(axis=-1)
    passing[larger] = 0.0
    parts[..., 11] = np.where(larger, update, 0.0)
    parts[..., 12] += _channels(cols, known.groups)[:, None]
    parts[..., 13] = float(law.coefficients()["library_bytes"])
    fullest = parts.sum(axis=-1).argmax(axis=-1)
    return np.asarray(parts[np.arange(len(cols)), fullest])


def _states(cols: Columns, cut: Cuts, known: Sizes, parts: Floats) -> Floats:
    """Fills weights, gradients, optimizer states and gathering buffers; what the update allocates beside [C, P]."""
    scenario, sharding = cols.scenario, cols.scenario.parallelism.data_sharding
    each = law.state_bytes(1.0, Shards(1, 1, 1), scenario.precision)
    step = law.optimizer_step_bytes(1.0, Shards(1, 1, 1), scenario.precision)
    torus = np.array([one.fabric.kind == "torus" for one in cols.choices.clusters])[cols.rows.cluster]
    rooms, update = known.rooms.each.T, np.zeros(parts.shape[:2])
    for place, (ring, count, room) in enumerate(zip(known.groups, held(cols, cut), rooms, strict=True)):
        ranks = ring.ranks[:, None]
        shards: Any = (
            ranks if sharding == "full" else np.ones_like(ranks),
            ranks if sharding in ("gradients", "full") else np.ones_like(ranks),
            np.ones_like(ranks) if sharding == "none" else ranks,
        )
        for part, name in enumerate(STATES):
            parts[..., 3 * place + part] = each[name] * count / shards[part]
        # A compiled program on a torus updates tensor by tensor.
        update += np.where(torus[:, None], 0.0, step * count / shards[2])
        gathered = law.gathered_bytes(count, room[:, None], Shards(*shards), scenario.precision)
        parts[..., 12] += gathered
    return update


def _token_bytes(cols: Columns) -> Keyed:
    """What a token leaves in a layer; between no routed rows and one, and beyond, it is a straight line."""

    def ask(row: int) -> list[float]:
        scenario, found = cols.scenario_at(row), list[float]()
        split = split_of(scenario)
        chosen = frozenset({"full"} if scenario.recompute == "full" else scenario.recomputed_modules)
        for modules in (chosen, frozenset[str]()):
            none, one = (
                law.token_layer_bytes(scenario.model, scenario.precision, count, modules, split) for count in (0.0, 1.0)
            )
            found += [none.attention, none.dense, none.experts, one.experts - none.experts]
        return found

    return cols.keyed("token bytes", ask, cols.rows.recompute, cols.rows.tensor, cols.rows.expert_tensor)


def _activations(cols: Columns, cut: Cuts, token: Floats, kept_rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Activations in flight, temporaries of one layer's backward, and logits [C, P]."""
    scenario, tokens = cols.scenario, cols.tokens[:, None].astype(np.float64)
    bytes_of, own = (token[:, :4], token[:, 4:]), cut.own_layers[:, cut.on].sum(axis=-1)
    stays = np.maximum(0.0, 1.0 - scenario.stack_options.offload_layers / np.maximum(own, 1))
    chunk = [_chunk_bytes(cut, each, kept_rows) for each in bytes_of]
    largest = [_largest(each, kept_rows) for each in bytes_of]
    held_bytes = np.concatenate([stays[:, :, None] * chunk[0], chunk[1]], axis=-1)
    heads = np.zeros(held_bytes.shape[1:])
    heads[:, : cut.on.shape[1]] = cut.any.heads[cut.on] > 0.0
    most, logits = _in_flight(cols, held_bytes, heads)
    gradients = np.zeros(kept_rows.shape)
    first, key = distinct(cols.rows.tensor, cols.rows.expert_tensor)
    for place, row in enumerate(first.tolist()):
        mine = key == place
        split = split_of(cols.scenario_at(row))
        gradients[mine] = law.gradient_pass_bytes(scenario.model, kept_rows[mine], split)
    # Sequence parallelism gathers a block's input before its first product.
    whole = scenario.parallelism.sequence_parallel & (cols.rows.tensor > 1)
    gathered = 2.0 * scenario.model.d_model * cols.rows.tensor * whole
    again = np.maximum(0.0, largest[1] - stays * largest[0])
    data, mtp = law.coefficients()["logit_bytes"], scenario.model.mtp_layers
    has_head = heads.any(axis=1)
    each = data["kept"] * logits * (1 + mtp) + data["gradient"]
    works = own > 0
    return (
        tokens * most * works,
        tokens * (again + gradients + gathered[:, None]) * works,
        np.where(has_head, tokens * scenario.model.vocab * each, 0.0),
    )


def _chunk_bytes(cut: Cuts, each: Floats, rows: Floats) -> Floats:
    """Bytes that a token leaves in each chunk of a device [C, P, V]."""
    attention, dense, experts, row = (each[:, part, None, None] for part in range(4))
    moe, other = cut.experts[:, cut.on], cut.dense[:, cut.on]
    return np.asarray((moe + other) * attention + other * dense + moe * (experts + rows[:, :, None] * row))


def _largest(each: Floats, rows: Floats) -> Floats:
    """Bytes of a token in the larger of a dense layer and one with experts [C, P]."""
    attention, dense, experts, row = (each[:, part, None] for part in range(4))
    return np.asarray(attention + np.maximum(dense, experts + rows * row))


def _in_flight(cols: Columns, sizes: Floats, heads: Floats) -> tuple[Floats, Floats]:
    """The most bytes a token that microbatches in flight leave on a device, and the most of them between their head and
    its backward [C, P]."""
    rows, most, logits = cols.rows, np.zeros(sizes.shape[:2]), np.zeros(sizes.shape[:2])
    first, key = distinct(cols.kind, cols.microbatches, cols.paired)
    for place, row in enumerate(first):
        mine = np.flatnonzero(key == place)
        stages, batches = int(rows.pipeline[row]), int(cols.microbatches[row])
        found = []
        for length in lengths(stages, batches):
            made = plan(KINDS[cols.kind[row]], stages, int(cols.chunks[row]), length, bool(cols.paired[row]))
            full, head = np.empty((len(mine), stages)), np.empty((1, stages))
            fullest_moments(made.held, made.edges, sizes[mine], full)
            fullest_moments(made.held, made.edges, heads[None], head)
            found.append((full, head[0]))
        most[mine], logits[mine] = (extended(each, stages, batches) for each in zip(*found, strict=True))
    return most, logits


def extended(found: tuple[Floats, ...], stages: int, microbatches: int) -> Floats:
    """What holds for so many microbatches, from the one or two schedules of `layouts.lengths`."""
    if len(found) == 1:
        return found[0]
    near, far = lengths(stages, microbatches)
    return np.asarray(found[1] + (microbatches - far) / (far - near) * (found[1] - found[0]))


def _exchange(cols: Columns, cut: Cuts, buffers: Floats, busiest: Floats) -> Floats:
    """Exchange buffers [C, P] where a device holds MoE layers."""
    library, there, there_each, back, back_each = buffers.T[:, :, None]
    received = cols.tokens[:, None] * busiest
    ways = there + there_each * received, back + back_each * received
    size = library + np.where(cols.paired[:, None], ways[0] + ways[1], np.maximum(*ways))
    holds = cut.experts[:, cut.on].any(axis=-1)
    return np.where(cols.exchanges[:, None] & holds, size, 0.0)


def _channels(cols: Columns, groups: tuple[Rings, Rings]) -> Floats:
    """Buffers of communicators, of messages between pipeline ranks, and of a context ring [C]."""
    rows = cols.rows
    sizes = (rows.tensor, rows.context, rows.pipeline, rows.expert, *(ring.ranks for ring in groups))
    torus = np.array([one.fabric.kind == "torus" for one in cols.choices.clusters])[rows.cluster]
    count = np.where(torus, 0, np.sum([size > 1 for size in sizes], axis=0))
    hops, ring = law.channel_bytes(cols.scenario.model, cols.tokens, cols.replica_tokens, rows.tensor)
    beside = np.where(rows.pipeline > 1, hops, 0.0) + np.where(rows.context > 1, ring, 0.0)
    return np.asarray(beside + count * law.communicator_bytes())
