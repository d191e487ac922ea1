"""Routed rows by key: how the closed form's expected loads fall on ranks, and what they cost the busiest one.

L MoE layers, R ranks, E experts; G load keys (what a group routes), X row-price keys (a load key on one kind of GPU), D
devices of all layouts, one after the other. Sums over layers are kept [.., L + 1], so that any run of layers is a
difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.closed_form.expected import Loads, expected_loads
from moesim.routing.moments import Moments
from moesim.screening._load_kernels import price_rows
from moesim.screening.columns import Columns, distinct
from moesim.screening.layouts import Places
from moesim.screening.unit_prices import Units
from moesim.step.draws import load_moments, shares
from moesim.step.model import StepModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupLoad:
    """What one expert-parallel group routes. `loads` by expert; `rows` [L, E] computed, `active` [L, E] the chance of
    a row at all (None where padded), `ranks` [L, R] rows of a rank."""

    model: StepModel
    loads: Loads
    rows: Floats
    active: Floats | None

    @cached_property
    def ranks(self) -> Floats:
        """Rows computed by each rank [L, R]."""
        return np.asarray(self.by_rank(self.rows).sum(axis=-1))

    def by_rank(self, values: Floats) -> Floats:
        """Values [L, E] by the rank that holds the expert [L, R, E/R]."""
        return values.reshape(len(values), self.model.scenario.parallelism.expert, -1)

    @property
    def dropped(self) -> float:
        """Share of routed copies that no expert keeps, mean over layers."""
        kept, routed = self.loads.kept.sum(axis=-1), np.maximum(self.loads.routed.sum(axis=-1), 1.0)
        return float((1.0 - kept / routed).mean())


def group_load(cols: Columns, row: int, moments: dict[int, Moments]) -> GroupLoad:
    """The expected load of one candidate; `moments` holds what is known of the load by sequence length."""
    return cols.memo.answer("group loads", group_name(cols, row), lambda: _group_load(cols, row, moments))


def group_name(cols: Columns, row: int) -> tuple[int, ...]:
    """What the expected load of a candidate follows from."""
    rows = cols.rows
    degrees = (rows.tensor[row] * rows.context[row], rows.expert[row], rows.expert_tensor[row])
    return (*map(int, degrees), int(cols.tokens[row]), int(rows.micro_batch[row]), int(rows.capacity[row]))


def _group_load(cols: Columns, row: int, moments: dict[int, Moments]) -> GroupLoad:
    model = StepModel(cols.scenario_at(row))
    loads = expected_loads(model, moments[sequence_length(model)])
    rows = model.computed_rows(loads.kept)
    return GroupLoad(model, loads, rows, None if model.padded else -np.expm1(-rows))


def sequence_length(model: StepModel) -> int:
    """Tokens of a sequence as the group sees them: all that a load's moments know of the layout."""
    shared = shares(model)
    return shared.tokens // shared.sequences


def known_moments(cols: Columns) -> dict[int, Moments]:
    """The load's moments for every length of sequence that occurs."""
    rows, found = cols.rows, cols.memo.law("moments")
    for row in distinct(rows.tensor * rows.context, rows.micro_batch, rows.expert_tensor)[0]:
        model = StepModel(cols.scenario_at(row))
        length = sequence_length(model)
        if length not in found:
            found[length] = load_moments(model)
    return found


class Routed(NamedTuple):
    """Routed rows of a block of candidates. `group` and `cost` [C]: its load key and its row-price key.

    By load key: `dropped` [G]; `busiest` [G, L] copies that reach the busiest rank for each token of a rank; `kept`
    and `most` [G, D] rows for each of a rank's own tokens, of the rank that a device's layers load most on average, and
    of the busiest rank in any of them; `sent` [G] of the mean rank. By row-price key, sums over layers [X, L + 1]:
    seconds of products and rows, of the busiest rank and of the mean one.
    """

    group: Ints
    cost: Ints
    dropped: Floats
    busiest: Floats
    kept: Floats
    most: Floats
    sent: Floats
    products: Floats
    rows: Floats
    mean_products: Floats
    mean_rows: Floats


def group_keys(cols: Columns) -> tuple[Ints, Ints]:
    """A row of each load key, and each candidate's [C]."""
    rows = cols.rows
    return distinct(
        rows.tensor * rows.context, cols.tokens, rows.micro_batch, rows.expert, rows.expert_tensor, rows.capacity
    )


def routed(cols: Columns, units: Units, unit: Ints, places: Places, moments: dict[int, Moments]) -> Routed:
    """The routed rows of a block of candidates, whose unit prices are `units` by `unit` [C]."""
    first, group = group_keys(cols)
    price = _row_prices(units)
    firsts, cost = distinct(group, price[unit], cols.parts)
    by_group = np.argsort(group[firsts], kind="stable")
    edges = np.searchsorted(group[firsts][by_group], np.arange(len(first) + 1))
    layers = len(StepModel(cols.scenario_at(0)).moe_index)
    sums = np.zeros((4, len(firsts), layers + 1))
    dropped, sent, busiest = np.zeros(len(first)), np.zeros(len(first)), np.zeros((len(first), layers))
    kept, most = (np.zeros((len(first), len(places))) for _ in range(2))
    for number, row in enumerate(first):
        load = group_load(cols, int(row), moments)
        own = load.ranks / cols.tokens[row]
        dropped[number], busiest[number] = load.dropped, _copies(cols, int(row), load)
        sent[number] = own.mean() / cols.rows.expert_tensor[row]
        kept[number], most[number] = places.fullest(own)
        for place in by_group[edges[number] : edges[number + 1]]:
            at = firsts[place]
            sums[:, place, 1:] = _priced(load, units, int(unit[at]), int(cols.parts[at]))
    return Routed(group, cost, dropped, busiest, kept, most, sent, *np.cumsum(sums, axis=-1))


def _row_prices(units: Units) -> Ints:
    """Which unit keys [U] price rows alike: recompute, for one, makes no difference to the forward."""
    rows = units.rows
    same = np.stack([rows.arithmetic, rows.weights, rows.memory, rows.stretch], axis=-1)
    return np.unique(same, axis=0, return_inverse=True)[1].reshape(-1)


def _copies(cols: Columns, row: int, load: GroupLoad) -> Floats:
    """Copies [L] that reach the busiest rank for each token of a rank, from each source."""
    share = cols.rows.expert_tensor[row] * cols.tokens[row] * cols.rows.expert[row]
    return np.asarray(load.ranks.max(axis=-1) / share)


def _priced(load: GroupLoad, units: Units, unit: int, parts: int) -> Floats:
    """Product seconds and rows [4, L]: of the rank that takes longest in each layer, and of the mean rank."""
    cost, found = units.rows, np.empty((4, len(load.rows)))
    active = (load.rows > 0).astype(np.float64) if load.active is None else load.active
    law = np.array([cost.arithmetic[unit] / parts, cost.weights[unit], parts * cost.stretch[unit]])
    rows_law = float(cost.stretch[unit] * cost.memory[unit])
    price_rows(load.rows, active, load.ranks, law, rows_law, found)
    return found
