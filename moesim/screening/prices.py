"""Seconds of every operation of the candidates, with the host's and the stack's stretch, alone and beside an exchange.

C candidates. An experts' operation of one layer takes `experts` [C, 4, 3] times (products, rows, 1): the seconds of its
products, the rows of its rank, and what does not depend on them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.costs.compute import grouped_seconds, smooth_max
from moesim.screening.columns import Columns, Keyed
from moesim.screening.exchanges import Families
from moesim.screening.unit_prices import Collectives, UnitKeys, Units, collectives, issue_seconds, unit_prices, unpacked
from moesim.step.stack import time_factor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Booleans = NDArray[np.bool_]
OPERATIONS = ("attention, dense", "attention, moe", "router", "dense", "shared", "embedding", "head", "experts")
"""In the order of their numbers, exchanges left out."""


class Table(NamedTuple):
    """Seconds of operations by phase: forward, backward without weight gradients, the whole backward, weight gradients.

    `plain` [C, 7, 4]: all but the experts'; `experts` [C, 4, 3]; `even` [C, 4] the experts' at even load; `host` [C, 2]
    how much longer a dense and an MoE layer take by the host and the stack; `collectives` [C, 3, 3] before that."""

    plain: Floats
    experts: Floats
    even: Floats
    host: Floats
    collectives: Collectives


class Prices(NamedTuple):
    """Prices alone, how many times as long an operation takes while an exchange runs [C, 8, 4], and the stack's factor
    [C]. `layers` [C, 4]: priced seconds of a dense and an MoE layer, of the embedding and of one head, on all SMs and
    without exchanges; `exchange` [C] those of a dispatch and a combine at even load."""

    alone: Table
    slowed: Floats
    stack: Floats
    layers: Floats
    exchange: Floats


def even_rows(cols: Columns) -> Floats:
    """Rows of each local expert at even load [C]."""
    if not cols.scenario.model.is_moe:
        return np.zeros(len(cols))
    rule, tokens, batch = cols.scenario.router, cols.tokens * cols.rows.expert_tensor, cols.rows.micro_batch
    copies = cols.keyed("copies", lambda row: rule.copies(int(tokens[row]), int(batch[row])), tokens, batch).each
    return copies * cols.rows.expert / cols.scenario.model.n_experts


def stack_factors(cols: Columns) -> Floats:
    """How much longer the software stack takes [C]."""
    scenario = cols.scenario
    each = [time_factor(scenario.stack, scenario.model.kernels, one.calibration) for one in cols.choices.clusters]
    return np.array(each)[cols.rows.cluster]


class Asked(NamedTuple):
    """What the laws of prices were asked for, by key."""

    units: UnitKeys
    free: Keyed
    alone: Keyed
    beside: Keyed
    issue: Keyed
    even: Floats
    stack: Floats

    def rows(self, chosen: Ints) -> Asked:
        """That of some candidates."""
        free, alone, beside = (each.rows(chosen) for each in (self.free, self.alone, self.beside))
        rest = self.issue.rows(chosen), self.even[chosen], self.stack[chosen]
        return Asked(self.units.rows(chosen), free, alone, beside, *rest)


def asked(cols: Columns, found: Families | None) -> Asked:
    """Asks the laws once for each key."""
    overlaps = cols.choices.overlaps
    busy = np.zeros(len(cols), dtype=np.int64) if found is None else np.where(cols.hides, found.multiprocessors, 0)
    held = np.array([overlap.interference == "reserved" for overlap in overlaps])[cols.rows.overlap]
    reserved = np.where(held, busy, 0)
    rings = (collectives(cols, 0 * busy, False), collectives(cols, reserved, False), collectives(cols, busy, True))
    units, issue = unit_prices(cols, reserved, busy), issue_seconds(cols)
    return Asked(units, *rings, issue, even_rows(cols), stack_factors(cols))


def prices(cols: Columns, known: Asked, found: Families | None) -> Prices:
    """Prices of a block of candidates."""
    units = known.units
    alone_units, exchange = units.alone.at(units.key), _even_exchanges(cols, found)
    alone = _table(cols, alone_units, unpacked(known.alone.each), known)
    slowed = np.ones((len(cols), len(OPERATIONS), 4))
    meets = np.flatnonzero(cols.hides & _costs(cols))
    if found is not None and len(meets):
        few, few_known, few_units = cols.part(meets), known.rows(meets), units.rows(meets)
        taken = _memory_taken(few, found.rows(meets), exchange[meets] * alone_units.memory_rate[meets])
        full, starved = (each.at(few_units.key) for each in (units.beside, units.starved))
        beside_units = full.towards(starved, 1.0 / (1.0 - taken) - 1.0)
        beside = _table(few, beside_units, unpacked(few_known.beside.each), few_known)
        one = np.concatenate([alone.plain[meets], alone.even[meets, None]], axis=1)
        other = np.concatenate([beside.plain, beside.even[:, None]], axis=1)
        ratio = np.where(one > 0.0, other / np.where(one > 0.0, one, 1.0), 1.0)
        slowed[meets] = np.maximum(ratio, 1.0)
    layers = _layer_seconds(cols, alone)
    held = np.flatnonzero(cols.hides & ~cols.cut_evenly)
    if len(held):
        part, part_known = cols.part(held), known.rows(held)
        free = _table(part, units.free.at(units.key[held]), unpacked(part_known.free.each), part_known)
        layers[held] = _layer_seconds(part, free)
    return Prices(alone, slowed, known.stack, layers, exchange)


def _costs(cols: Columns) -> Booleans:
    """Whether what runs beside an exchange is slowed by it [C]."""
    return np.array([overlap.interference != "none" for overlap in cols.choices.overlaps])[cols.rows.overlap]


def _layer_seconds(cols: Columns, table: Table) -> Floats:
    """Seconds of a microbatch's forward, again where everything is recomputed, and backward [C, 4]: of a dense and an
    MoE layer, the embedding and a head."""
    again = np.array([1.0, 0.0, 1.0, 0.0]) + is_full(cols)[:, None] * np.array([1.0, 0.0, 0.0, 0.0])
    once = np.array([1.0, 0.0, 1.0, 0.0])
    layers = (table.plain * again[:, None]).sum(axis=-1)
    experts = (table.even * again).sum(axis=-1) + layers[:, 2] + apart(cols) * layers[:, 4]
    ends = (table.plain[:, 5:] * once).sum(axis=-1)
    return np.column_stack([layers[:, 0] + layers[:, 3], layers[:, 1] + experts, ends])


def _even_exchanges(cols: Columns, found: Families | None) -> Floats:
    """Seconds of a dispatch and a combine at even load [C]."""
    seconds = np.zeros(len(cols))
    if found is None:
        return seconds
    for number in np.unique(found.family):
        mine = found.family == number
        seconds[mine] = cols.parts[mine] * found.known[number].even_seconds(cols.tokens[mine] / cols.parts[mine])
    return seconds


def _memory_taken(cols: Columns, found: Families, room: Floats) -> Floats:
    """Share of memory bandwidth that an exchange takes at even load [C], of `room` bytes that pass meanwhile."""
    each = np.array([(family.traffic, family.most_memory) for family in found.known])[found.family]
    share = np.divide(each[:, 0] * cols.tokens, room, out=np.zeros(len(cols)), where=room > 0.0)
    return np.asarray(np.minimum(share, each[:, 1]))


def _table(cols: Columns, units: Units, collectives: Collectives, known: Asked) -> Table:
    """Seconds of operations by one set of unit prices."""
    plain = units.plain * cols.tokens[:, None, None].astype(np.float64)
    attention, router, dense, shared, embedding, head = (plain[:, place] for place in range(6))
    attention = attention + collectives.seconds[:, 0]
    dense, shared = dense + collectives.seconds[:, 1], shared + collectives.seconds[:, 2]
    alone = apart(cols)
    beside = np.where(alone[:, None], 0.0, shared)
    law = _experts(cols, units, collectives, beside)
    even, stack = _even_experts(cols, units, law, known.even), known.stack
    around = attention.sum(axis=-1) + router.sum(axis=-1) + np.where(alone, shared.sum(axis=-1), 0.0)
    *issues, exponent = known.issue.each.T
    gpu = (attention.sum(axis=-1) + dense.sum(axis=-1), around + even.sum(axis=-1))
    host = np.stack(
        [smooth_max(own, issue, exponent) / own * stack for own, issue in zip(gpu, issues, strict=True)],
        axis=-1,
    )
    # The router's backward has no operation of its own: it runs with the attention's.
    ahead = np.array([0.0, 1.0, 1.0])
    thin, wide = host[:, :1], host[:, 1:]
    listed = np.stack(
        [
            attention * thin,
            (attention + ahead * router) * wide,
            router * wide,
            dense * thin,
            shared * wide,
            embedding * stack[:, None],
            head * stack[:, None],
        ],
        axis=1,
    )
    return Table(_phased(listed), _phased_law(law) * wide[:, :, None], _phased(even) * wide, host, collectives)


def _even_experts(cols: Columns, units: Units, law: Floats, rows: Floats) -> Floats:
    """Seconds of experts at even load by phase [C, 3], from `rows` of each local expert [C]."""
    cost, local = units.rows, cols.scenario.model.n_experts / cols.rows.expert
    part = (rows / cols.parts)[:, None]
    one = grouped_seconds(part, cost.arithmetic[:, None], cost.weights[:, None])
    products = cols.parts * cost.stretch * local * one
    even = law @ np.stack([products, rows * local, np.ones(len(cols))], axis=-1)[:, :, None]
    return np.asarray(even[:, :, 0])


def apart(cols: Columns) -> Booleans:
    """Whether what stands beside the routed experts runs beside their exchanges [C]."""
    model = cols.scenario.model
    wanted = np.array([overlap.shared_experts for overlap in cols.choices.overlaps])[cols.rows.overlap]
    beside = bool(model.shared_expert_width or model.dense_beside_experts)
    return np.asarray(wanted & cols.exchanges & beside)


def _experts(cols: Columns, units: Units, collectives: Collectives, beside: Floats) -> Floats:
    """The law of routed experts [C, 3, 3] by phase: factors of products and of rows, and a constant."""
    memory = units.rows.stretch * units.rows.memory
    law = np.ones((len(cols), 3, 3))
    for phase, factor in enumerate((np.ones(len(cols)), units.rows.backward, units.rows.weight)):
        gathers = float(phase < 2)
        law[:, phase, 1] = factor * memory + gathers * collectives.row
        law[:, phase, 2] = beside[:, phase] + gathers * collectives.start
    return law


def _recomputes(cols: Columns, module: str) -> Floats:
    """1 where a module runs again in the backward [C]."""
    found = [isinstance(chosen, tuple) and module in chosen for chosen in cols.choices.recomputes]
    return np.array(found, dtype=np.float64)[cols.rows.recompute]


def _phased(three: Floats) -> Floats:
    """[..., 3] by phase, with the whole backward in the third place [..., 4]."""
    return np.stack([three[..., 0], three[..., 1], three[..., 1] + three[..., 2], three[..., 2]], axis=-1)


def _phased_law(three: Floats) -> Floats:
    return np.stack([three[:, 0], three[:, 1], three[:, 1] + three[:, 2], three[:, 2]], axis=1)


def is_full(cols: Columns) -> Booleans:
    """Whether everything runs again in the backward [C]."""
    return np.array([chosen == "full" for chosen in cols.choices.recomputes])[cols.rows.recompute]


def repeats_experts(cols: Columns) -> Booleans:
    """Whether the experts with their exchanges run again in the backward [C]."""
    return is_full(cols) | (_recomputes(cols, "moe") > 0.0)


def tensor_parallel_seconds(cols: Columns, table: Table, mean_rows: Floats) -> Floats:
    """Seconds of tensor- and context-parallel collectives in a step, mean over pipeline ranks [C].

    `mean_rows` [C]: rows of the mean rank in a layer.
    """
    model = cols.scenario.model
    moe = model.layer_kinds.count("moe") + model.mtp_layers * (model.layer_kinds[-1] == "moe")
    other = model.layers + model.mtp_layers - moe
    times = cols.microbatches / cols.rows.pipeline
    full = is_full(cols)
    forwards = 1.0 + full
    own = table.collectives.seconds
    weighed = forwards[:, None] * own[:, :, 0] + own[:, :, 1] + own[:, :, 2]
    found = other * table.host[:, 0] * (weighed[:, 0] + weighed[:, 1])
    again = forwards + (repeats_experts(cols) & ~full)
    each = np.where(mean_rows > 0.0, table.collectives.start + table.collectives.row * mean_rows, 0.0)
    experts = again * (each + own[:, 2, 0]) + each + own[:, 2, 1]
    found = found + moe * table.host[:, 1] * (weighed[:, 0] + experts)
    return np.asarray(times * found)
