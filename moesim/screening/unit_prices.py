"""What every rank does alike, by key: prices of one token, collectives, and how fast a host issues kernels.

All of it from `moesim.step.prices.Prices`: work grows in a straight line with tokens, so that one token's price serves
all sizes; collectives are priced for each size. U unit keys, I issue keys; `PHASES` forward, backward without weight
gradients, weight gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.costs.compute import grouped_costs
from moesim.screening.columns import Columns, Keyed, distinct
from moesim.step.interference import rates_beside
from moesim.step.prices import Prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PHASES = ("forward", "backward", "weight")
PLAIN = ("attention", "router", "dense", "shared", "embedding", "head")
"""Operations whose time grows with a rank's tokens alone."""
COLLECTIVES = ("attention", "dense", "experts")
Unit = tuple[Floats, tuple[float, ...], float]
"""Seconds a token, what rows cost, the rate of memory."""
_REPEATED = ("mlp", "shared_experts")
"""Modules whose collectives run again with them."""


class RowCost(NamedTuple):
    """Of routed rows on a rank: seconds of a row's arithmetic, of reading an expert's weights, of a row's passes over
    memory in the forward; how many times as long all of it takes (expert layers that were measured); and how many times
    the forward's passes those of the input gradients and of the weight gradients are."""

    arithmetic: Floats
    weights: Floats
    memory: Floats
    stretch: Floats
    backward: Floats
    weight: Floats


@dataclass(frozen=True)
class Units:
    """Prices by unit key. `plain` [U, 6, 3]: seconds a token; `rows`: of routed rows [U]; `memory_rate` bytes/s [U]."""

    plain: Floats
    rows: RowCost
    memory_rate: Floats

    def at(self, key: Ints) -> Units:
        """The prices of several candidates by their keys."""
        return Units(self.plain[key], RowCost(*(values[key] for values in self.rows)), self.memory_rate[key])

    def towards(self, other: Units, share: Floats) -> Units:
        """This and `share` [C] of the way to another."""

        def between(mine: Floats, its: Floats) -> Floats:
            return mine + share.reshape(-1, *[1] * (mine.ndim - 1)) * (its - mine)

        rows = RowCost(*(between(mine, its) for mine, its in zip(self.rows, other.rows, strict=True)))
        return Units(between(self.plain, other.plain), rows, self.memory_rate)


@dataclass(frozen=True)
class UnitKeys:
    """Unit prices of the candidates by `key` [C]: on all SMs, and on those that exchanges do not hold throughout;
    beside an exchange at full memory bandwidth, and with half of it taken."""

    key: Ints
    free: Units
    alone: Units
    beside: Units
    starved: Units

    def rows(self, chosen: slice | Ints) -> UnitKeys:
        """Those of some candidates."""
        return replace(self, key=self.key[chosen])


def unit_prices(cols: Columns, reserved: Ints, busy: Ints) -> UnitKeys:
    """Unit prices; `reserved` and `busy` [C]: SMs that communication takes throughout, and while an exchange runs."""
    rows = cols.rows
    keys = [cols.site, rows.recompute, rows.tensor, rows.expert_tensor, reserved, busy]
    if any(cluster.calibration is not None for cluster in cols.choices.clusters):
        # Kernels that were measured move the rates by what the layout asks of them.
        keys += [rows.tensor, rows.context, rows.micro_batch, rows.expert]
    first, key = distinct(*keys)
    names = np.stack(keys, axis=-1)[first].tolist()
    found = [
        cols.memo.answer("units", tuple(name), lambda row=row: _units(cols, row, reserved, busy))  # type: ignore[misc]
        for row, name in zip(first.tolist(), names, strict=True)
    ]
    return UnitKeys(key, *(_stacked(list(units)) for units in zip(*found, strict=True)))


def _units(cols: Columns, row: int, reserved: Ints, busy: Ints) -> list[Unit]:
    """One candidate's prices in the order of `UnitKeys`."""
    scenario = cols.scenario_at(row)
    rest = catalog.calibration("overlap-interference", scenario.cluster.calibration)["products"]
    found = [_unit(Prices(scenario, held, False)) for held in (0, int(reserved[row]))]
    for taken in (0.0, 0.5):
        beside = Prices(scenario, int(busy[row]), False)
        beside.rates = rates_beside(beside.rates, float(rest), taken)
        found.append(_unit(beside))
    return found


def _unit(prices: Prices) -> Unit:
    """Prices of one token and of a row."""
    prices.tokens = 1.0
    plain = np.array([getattr(prices, name) for name in PLAIN])
    row, passes = prices.row, prices.data["passes_backward"]
    again = prices.data["recomputed_passes"]["moe_act"] * ("moe_act" in prices.modules)
    costs = grouped_costs(row.flops, row.weight_elements, prices.rates)
    rows = (*costs, row.memory_seconds, prices.rates.experts, passes["inputs"] + again, passes["weights"])
    return plain, rows, prices.rates.memory


def _stacked(units: list[Unit]) -> Units:
    plain, rows, memory = zip(*units, strict=True)
    return Units(np.stack(plain), RowCost(*np.array(rows).T), np.array(memory))


class Collectives(NamedTuple):
    """Seconds of tensor- and context-parallel collectives [C, 3, 3] (operation, phase), and of gathering and summing
    routed rows over an expert's tensor group, either way: `start` [C], and for each `row` [C]."""

    seconds: Floats
    start: Floats
    row: Floats


def collectives(cols: Columns, multiprocessors: Ints, beside: bool) -> Keyed:
    """Collectives as flat rows; `beside` an exchange scores are slower, and hide less of a context ring."""
    rows = cols.rows
    taken = np.where(rows.context > 1, multiprocessors, 0)

    def ask(row: int) -> list[float]:
        prices = Prices(cols.scenario_at(row), int(taken[row]), False)
        if beside:
            data = catalog.calibration("overlap-interference", prices.scenario.cluster.calibration)
            prices.rates = rates_beside(prices.rates, float(data["products"]), 0.0)
        seconds = [part for name in COLLECTIVES for part in prices.collectives[name]]
        return [*seconds, *_straight(prices)]

    sizes = (rows.tensor, rows.context, rows.micro_batch, cols.parts, rows.expert_tensor)
    said = [overlap.tensor_parallel is not False for overlap in cols.choices.overlaps]
    again = [np.isin(_REPEATED, chosen).tolist() for chosen in cols.choices.recomputes]
    repeats = np.array(again, dtype=np.int64) @ np.array([1, 2])
    return cols.keyed(
        f"collectives {beside}",
        ask,
        cols.site,
        cols.seats,
        *sizes,
        np.array(said)[rows.overlap],
        repeats[rows.recompute],
        taken,
    )


def unpacked(flat: Floats) -> Collectives:
    """Collectives from flat rows [C, 11]."""
    return Collectives(flat[:, :9].reshape(-1, 3, 3), flat[:, 9], flat[:, 10])


def _straight(prices: Prices) -> tuple[float, float]:
    """Start and seconds a row of the expert-tensor group's collectives, which are a straight line beyond no rows."""
    if prices.scenario.parallelism.expert_tensor == 1:
        return 0.0, 0.0
    beside = prices.tensor_parallel["experts"].forward
    near, far = (float(prices.expert_collectives(rows)[0]) - beside for rows in (1e4, 2e4))
    return 2 * near - far, (far - near) / 1e4


def issue_seconds(cols: Columns) -> Keyed:
    """Host seconds to issue a dense and an MoE layer, and the exponent of their rounded maximum with the GPU's."""

    def ask(row: int) -> tuple[float, ...]:
        prices = Prices(cols.scenario_at(row), 0, bool(cols.paired[row]))
        exponent = float(prices.data["host"]["exponent"])
        return prices.issue_seconds("dense"), prices.issue_seconds("moe"), exponent

    return cols.keyed("issue", ask, cols.site, cols.rows.capacity, cols.rows.recompute, cols.paired, cols.parts)
