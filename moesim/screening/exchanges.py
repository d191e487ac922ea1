"""Seconds of dispatches and combines by key: each law asked a few times for a family of layouts, and read for all.

A family is a network, its expert-parallel ranks, a capacity and a dispatcher. For tokens that spread over ranks in the
same way every port's seconds X grow in a straight line with their number n, so that an exchange takes
latency + X + kappa sqrt(X), X = x n. x of a layer follows from how many copies of a token reach the busiest rank,
between the least and the most uneven load of the family, both asked for by themselves.
F families, Y exchange keys, L MoE layers, B priced layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.closed_form.expected import expected_demand, priced_layers, source_shares
from moesim.costs.exchange_memory import Exchange, exchange_buffers
from moesim.network.demand import Demand
from moesim.network.dispatchers import DISPATCHERS, PortTimes, payload
from moesim.network.dispatchers.base import DIRECTIONS
from moesim.network.dispatchers.choice import Compared, compare, selected
from moesim.network.topology import group
from moesim.routing.moments import Moments
from moesim.screening.columns import Columns, Keyed, distinct, keyed
from moesim.screening.loads import GroupLoad, Routed, group_load, group_name
from moesim.step.interference import exchange_traffic
from moesim.step.model import StepModel
from moesim.step.mover import Mover, even_demand

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NAMES = tuple(DISPATCHERS)
_FURTHER = 4.0
"""How many times the tokens at which a law is asked a second time."""


class Curve(NamedTuple):
    """One direction: latency `start` + `each` n, and `kappa`; x of the even load, `x` [2, B] of priced layers under the
    least and the most uneven load, at `copies` [2, B] a token to the busiest rank."""

    start: float
    each: float
    kappa: float
    even: float
    x: Floats
    copies: Floats

    def seconds(self, tokens: Floats, x: Floats | float) -> Floats:
        """Seconds of an exchange of so many tokens a rank."""
        wire = x * tokens
        return np.asarray(self.start + self.each * tokens + wire + self.kappa * np.sqrt(wire))

    def at(self, copies: Floats) -> Floats:
        """x [Y, B] where the busiest rank gets so many copies [Y, B]."""
        apart = self.copies[1] - self.copies[0]
        safe = np.where(np.abs(apart) > 1e-9 * np.abs(self.copies[0]), apart, np.inf)
        share = np.clip((copies - self.copies[0]) / safe, -0.25, 1.25)
        return np.asarray(np.maximum(self.x[0] + share * (self.x[1] - self.x[0]), 0.0))


class Family(NamedTuple):
    """What holds for all layouts of a family. `traffic` bytes of memory for each token of an exchange there and back,
    which takes `most_memory` of the bandwidth at most;
    `distinct` share of copies; `mover` and `nearest` [L] priced layer are of its representative."""

    curves: tuple[Curve, Curve]
    traffic: float
    most_memory: float
    distinct: float
    mover: Mover
    chosen: Ints
    nearest: Ints

    def even_seconds(self, tokens: Floats) -> Floats:
        """Dispatch and combine at even load."""
        return self.curves[0].seconds(tokens, self.curves[0].even) + self.curves[1].seconds(tokens, self.curves[1].even)


@dataclass(frozen=True)
class Families:
    """The families of all candidates: each one's `family` [C] and its dispatcher, a place in `NAMES` [C]."""

    known: tuple[Family, ...]
    family: Ints
    dispatcher: Ints

    @property
    def multiprocessors(self) -> Ints:
        """SMs that a candidate's dispatcher holds while it runs [C]."""
        return np.array([found.mover.busy_multiprocessors for found in self.known])[self.family]

    def rows(self, chosen: slice | Ints) -> Families:
        """Those of some candidates."""
        return replace(self, family=self.family[chosen], dispatcher=self.dispatcher[chosen])


def families(cols: Columns, moments: dict[int, Moments], network: str) -> Families:
    """Asks the network's laws once for each family."""
    rows, dispatcher = cols.rows, resolved(cols)
    keys = (cols.site, cols.expert_seats, rows.expert, rows.expert_tensor, rows.capacity, dispatcher)
    first, family = distinct(*keys)
    # Many sequences and tokens even a load out: the two ends of a family stand there.
    rank = np.lexsort((cols.group_tokens, cols.sequences))
    order = rank[np.argsort(family[rank], kind="stable")]
    edges = np.searchsorted(family[order], np.arange(len(first) + 1))
    found = []
    for number, name in enumerate(np.stack(keys, axis=-1)[first].tolist()):
        ends = order[[edges[number + 1] - 1, edges[number]]].tolist()

        def ask(ends: list[int] = ends, name: str = NAMES[name[-1]]) -> Family:
            return _family([_alone(cols, row, group_load(cols, row, moments), network, name) for row in ends])

        found.append(cols.memo.answer("families", (network, *name, *(group_name(cols, row) for row in ends)), ask))
    return Families(tuple(found), family, dispatcher)


def _alone(cols: Columns, row: int, load: GroupLoad, network: str, name: str) -> GroupLoad:
    """A candidate's load with its exchanges in one part, moved by the named dispatcher."""
    scenario = cols.scenario_at(row)
    alone = {
        "dispatcher": scenario.dispatcher.model_copy(update={"kind": name}),
        "overlap": scenario.overlap.model_copy(update={"two_batch": False}),
    }
    return replace(load, model=StepModel(scenario.model_copy(update=alone), network))


def _family(ends: list[GroupLoad]) -> Family:
    model = ends[0].model
    mover, tokens = model.mover, float(model.scenario.tokens_per_rank)
    chosen, nearest = priced_layers(*ends[0].ranks.shape)
    far = mover.times(_scaled(mover.even_demand, _FURTHER))
    starts = [_start(getattr(mover.even, way), getattr(far, way), tokens) for way in DIRECTIONS]
    curves: list[list[tuple[Floats, Floats]]] = [[], []]
    for load in ends:
        many = float(load.model.scenario.tokens_per_rank)
        # The same dispatcher on the same network: only its even demand is the load's own.
        load.model.mover = replace(mover, even_demand=even_demand(load.model.scenario, mover.network))
        sources = source_shares(load.model, load.loads.routed)[chosen]
        times = mover.times(expected_demand(load.model, load.ranks[chosen], sources))
        share = many * load.model.scenario.parallelism.expert * load.model.scenario.parallelism.expert_tensor
        for way, (_, _, kappa, _), points in zip(DIRECTIONS, starts, curves, strict=True):
            points.append((_root(_wire(getattr(times, way)), kappa) / many, load.ranks[chosen].max(axis=-1) / share))
    made = [
        Curve(*start, *(np.stack(values) for values in zip(*points, strict=True)))
        for start, points in zip(starts, curves, strict=True)
    ]
    data = catalog.calibration("overlap-interference", model.scenario.cluster.calibration)
    traffic = exchange_traffic(mover.even, data["memory_passes"]) / tokens
    distinct_share = min(1.0, float(mover.even_demand.rank_tokens.sum() / mover.even_demand.copies.sum()))
    return Family((made[0], made[1]), traffic, float(data["most_memory"]), distinct_share, mover, chosen, nearest)


def _scaled(demand: Demand, times: float) -> Demand:
    places = (demand.copies * times, demand.rank_tokens * times, demand.domain_tokens * times)
    return Demand(*places, demand.tokens * times, demand.ranks_per_domain)


def _wire(port: PortTimes) -> Floats:
    return np.asarray(port.busiest - port.latency)


def _start(near: PortTimes, far: PortTimes, tokens: float) -> tuple[float, float, float, float]:
    """Start, latency a token, kappa and the even x, from the times of n tokens and of `_FURTHER` times as many."""
    each = (far.latency - near.latency) / (_FURTHER - 1.0) / tokens
    first, second = float(_wire(near).max()), float(_wire(far).max())
    root = _FURTHER**0.5
    x = max(0.0, (second - root * first) / (_FURTHER - root))
    kappa = max(0.0, (first - x) / x**0.5) if x > 0.0 else 0.0
    return near.latency - each * tokens, each, kappa, x / tokens


def _root(wire: Floats, kappa: float) -> Floats:
    """X where X + kappa sqrt(X) is `wire`."""
    return np.asarray((np.sqrt(kappa**2 / 4.0 + wire) - kappa / 2.0) ** 2)


class Moved(NamedTuple):
    """Exchanges of a block of candidates: `key` [C], and seconds of the busiest rank, sums over layers [Y, L + 1]."""

    key: Ints
    dispatch: Floats
    combine: Floats


def moved(cols: Columns, found: Families, routed: Routed) -> Moved:
    """Seconds of every layer's dispatch and combine."""
    first, key = distinct(found.family, routed.group, cols.parts)
    layers = routed.busiest.shape[1]
    sums = np.zeros((2, len(first), layers + 1))
    for number in np.unique(found.family[first]):
        family, mine = found.known[number], np.flatnonzero(found.family[first] == number)
        rows = first[mine]
        parts = cols.parts[rows][:, None]
        tokens = (cols.tokens[rows] / cols.parts[rows])[:, None]
        copies = routed.busiest[routed.group[rows]][:, family.chosen]
        for way, curve in enumerate(family.curves):
            sums[way, mine, 1:] = (parts * curve.seconds(tokens, curve.at(copies)))[:, family.nearest]
    return Moved(key, *np.cumsum(sums, axis=-1))


def buffers(cols: Columns, found: Families, routed: Routed) -> Keyed:
    """Exchange buffers [.., 5]: a library's own bytes, and those of a dispatch and of a combine beside them: where no
    copy is received, and for each."""

    def ask(row: int) -> tuple[float, ...]:
        mover, tokens = found.known[found.family[row]].mover, float(cols.tokens[row])
        one = Exchange(
            tokens=tokens,
            sent=tokens * float(routed.sent[routed.group[row]]),
            received=0.0,
            distinct=found.known[found.family[row]].distinct,
            dispatch=mover.payload.dispatch,
            combine=mover.payload.combine,
            hidden=cols.scenario.model.d_model,
            experts=cols.scenario.model.n_experts,
            ranks=int(cols.rows.expert[row]),
            domain=mover.network.ranks_per_domain,
            multiprocessors=mover.busy_multiprocessors,
        )
        library, there, back = exchange_buffers(mover.dispatcher.name, one)
        _, there_one, back_one = exchange_buffers(mover.dispatcher.name, replace(one, received=1.0))
        return library, there, there_one - there, back, back_one - back

    return keyed(ask, found.family, routed.group)


def resolved(cols: Columns) -> Ints:
    """The dispatcher of each candidate, a place in `NAMES`: the one named, or what `auto` takes."""
    names = cols.choices.dispatchers
    found = np.array([NAMES.index(name) if name in NAMES else -1 for name in names])[cols.rows.dispatcher]
    open_rows = np.flatnonzero(found < 0)
    if not len(open_rows):
        return found
    keys = (cols.site, cols.expert_seats, cols.rows.expert, cols.rows.expert_tensor)
    first, key = distinct(*(column[open_rows] for column in keys))
    for place, row in enumerate(open_rows[first]):
        mine = open_rows[key == place]
        sizes, which = np.unique(cols.tokens[mine], return_inverse=True)
        found[mine] = np.array(_automatic(cols, int(row), sizes))[which]
    return found


def _automatic(cols: Columns, row: int, sizes: Ints) -> list[int]:
    """What `auto` takes for each number of tokens a rank, asked at three of them: times are a + b n + c sqrt(n)."""
    scenario = cols.scenario_at(row)
    layout, model, precision = scenario.parallelism, scenario.model, scenario.precision
    network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    copy = payload(precision.dispatch, precision.combine, model.d_model, max(1, model.top_k), model.n_experts)
    demand, own = even_demand(scenario, network), float(scenario.tokens_per_rank)

    def ask(size: int) -> list[Compared]:
        return compare(DISPATCHERS, _scaled(demand, size / own), network, copy, scenario.dispatcher.multiprocessors)

    here = (cols.site[row], cols.expert_seats[row], layout.expert, layout.expert_tensor)
    chosen = sizes[np.unique([0, len(sizes) // 2, len(sizes) - 1])].tolist()
    asked = {
        size: cols.memo.answer("dispatchers", (*map(int, here), size), lambda size=size: ask(size))  # type: ignore[misc]
        for size in chosen
    }
    tables = {size: {line.name: line for line in table} for size, table in asked.items()}
    powers = np.linalg.inv(np.array([[1.0, size, size**0.5] for size in asked])) if len(asked) == 3 else None

    def between(size: int) -> list[Compared]:
        near = min(asked, key=lambda known: abs(known - size))
        lines = []
        for line in asked[near]:
            each = [table[line.name].total for table in tables.values()]
            refused = DISPATCHERS[line.name].runs_on(network) is not None
            if powers is None or refused or any(total is None for total in each):
                lines.append(line)
                continue
            total = float(np.array([1.0, size, size**0.5]) @ powers @ np.array(each, dtype=np.float64))
            why_not = DISPATCHERS[line.name].unfit(_scaled(demand, size / own), network)
            fitting = [
                table[line.name] for table in tables.values() if (table[line.name].why_not is None) == (why_not is None)
            ]
            lines.append(replace((fitting or [line])[0], total=total, why_not=why_not))
        return sorted(lines, key=lambda line: np.inf if line.total is None else line.total)

    return [
        NAMES.index(selected(DISPATCHERS, asked.get(int(size)) or between(int(size)), network).dispatcher.name)
        for size in sizes
    ]
