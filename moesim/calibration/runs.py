"""Measured rows as calls of the network laws: what a trial set of coefficients says of each row.

Rows that one call answers stand together; R ranks, B sizes of the batch (tokens of a rank, or bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.calibration.solve import Floats, Name
from moesim.network import collectives
from moesim.network.coefficients import Law, law
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import Payload, dispatcher, payload
from moesim.network.dispatchers.two_sided import prepare_seconds
from moesim.network.topology import GroupNetwork
from moesim.validation.network_kinds import forced_demand
from moesim.validation.ops import GroupOp
from moesim.validation.places import network_of

Laws = Mapping[str, Law]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One call of a law: the positions [n] of its rows, and their seconds [n] under trial laws."""

    rows: Ints
    seconds: Callable[[Laws], Floats]


def trial(shipped: Laws, values: Mapping[Name, float]) -> dict[str, Law]:
    """The laws with `values` in place of the shipped coefficients."""
    data = {name: deepcopy(entry.data) for name, entry in shipped.items()}
    for (name, *path), value in values.items():
        place: Any = data[name]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return {name: replace(entry, data=data[name]) for name, entry in shipped.items()}


def predict(runs: list[Run], laws: Laws, count: int) -> Floats:
    """Seconds [count] of all rows."""
    seconds = np.empty(count)
    for run in runs:
        seconds[run.rows] = run.seconds(laws)
    return seconds


def network(row: Any) -> GroupNetwork:
    """The group of a row (a named tuple), with the shipped laws."""
    nic = None if pd.isna(row.nic) else float(row.nic)
    return _network(str(row.gpu), int(row.ranks), int(row.ranks_per_domain), nic)


@lru_cache(maxsize=1024)
def _network(gpu: str, ranks: int, inside: int, nic: float | None) -> GroupNetwork:
    return network_of(GroupOp(gpu=gpu, ranks=ranks, ranks_per_domain=min(inside, ranks), nic=nic), None)


FORCED = "balanced"
"""The load under which every token goes to as many ranks as it can."""

_GROUP = ["gpu", "ranks", "ranks_per_domain", "nic"]
_EXCHANGE = [*_GROUP, "hidden", "top_k", "experts", "sms", "dispatch", "combine", "groups", "top_groups", "load"]


def collective_runs(rows: pd.DataFrame) -> list[Run]:
    """Runs of NCCL's collectives and equal all-to-alls; the index of `rows` counts from 0."""
    return [_collective(same) for _, same in rows.groupby([*_GROUP, "collective"], dropna=False, sort=True)]


def _collective(same: pd.DataFrame) -> Run:
    group, word = network(next(same.itertuples())), str(same["collective"].iloc[0])
    size = same["bytes"].to_numpy(dtype=np.float64)

    def seconds(laws: Laws) -> Floats:
        here = replace(group, laws=laws)
        if word == "all-to-all":
            return _all_to_all(here, size)
        if word == "all-gather":
            return collectives.all_gather(here, size / group.ranks, "alone")
        ring = collectives.reduce_scatter if word == "reduce-scatter" else collectives.all_reduce
        return ring(here, size, "alone")

    return Run(same.index.to_numpy(), seconds)


def custom_runs(rows: pd.DataFrame) -> list[Run]:
    """Runs of serving frameworks' own all-reduces."""
    return [_custom(same) for _, same in rows.groupby(_GROUP, dropna=False, sort=True)]


def _custom(same: pd.DataFrame) -> Run:
    group, size = network(next(same.itertuples())), same["bytes"].to_numpy(dtype=np.float64)

    def seconds(laws: Laws) -> Floats:
        return collectives.custom_all_reduce(replace(group, laws=laws), size)

    return Run(same.index.to_numpy(), seconds)


def _all_to_all(group: GroupNetwork, size: Floats) -> Floats:
    """Seconds [B] of an equal all-to-all of `size` [B] bytes a rank: tokens of one byte."""
    ranks = group.ranks
    copies = np.broadcast_to(size[:, None, None] / ranks, (size.size, ranks, ranks))
    reached = np.broadcast_to(size[:, None, None] / ranks, (size.size, ranks, group.domains))
    demand = Demand(copies, copies, reached, size[:, None] * np.ones(ranks), group.ranks_per_domain)
    times = dispatcher("nccl-all-to-all").times(demand, group, Payload(1.0, 1.0), notify=False)
    return np.asarray(times.dispatch.busiest)


def exchange_runs(rows: pd.DataFrame, library: str) -> list[Run]:
    """Runs of a dispatcher's kernels, without what stands beside them on the stream."""
    words = [word for word in _EXCHANGE if word in rows]
    return [_exchange(same, library) for _, same in rows.groupby(words, dropna=False, sort=True)]


def _exchange(same: pd.DataFrame, library: str) -> Run:
    row: Any = next(same.itertuples())
    group = network(row)
    tokens, place = np.unique(same["tokens"].to_numpy(dtype=np.float64), return_inverse=True)
    demand = _batch(_one_token(row, group), tokens)
    carried = payload(row.dispatch, row.combine, int(row.hidden), int(row.top_k), int(row.experts))
    sms = None if pd.isna(row.sms) else int(row.sms)
    parts = {word: (same["direction"] == word).to_numpy() for word in ("dispatch", "combine", "prepare")}

    def seconds(laws: Laws) -> Floats:
        here = replace(group, laws=laws)
        found = np.empty(place.size)
        if parts["dispatch"].any() or parts["combine"].any():
            times = dispatcher(library).times(demand, here, carried, sms, notify=False)
            found[parts["dispatch"]] = times.dispatch.busiest[place[parts["dispatch"]]]
            found[parts["combine"]] = times.combine.busiest[place[parts["combine"]]]
        if parts["prepare"].any():
            found[parts["prepare"]] = [prepare_seconds(tokens[at], here) for at in place[parts["prepare"]]]
        return found

    return Run(same.index.to_numpy(), seconds)


def _one_token(row: Any, group: GroupNetwork) -> Demand:
    """The demand [R, R] of one token a rank: forced balance reaches as many ranks as it can."""
    limits = (1, 1) if pd.isna(row.groups) else (int(row.groups), int(row.top_groups))
    choices = Choices(int(row.experts), int(row.top_k), *limits)
    made = forced_demand if getattr(row, "load", None) == FORCED else balanced_demand
    return made(choices, group.ranks, group.ranks_per_domain, 1.0)


def _batch(one: Demand, tokens: Floats) -> Demand:
    """The demand [B, R, R] of `tokens` [B] tokens a rank."""
    scale = tokens[:, None, None]
    return Demand(
        scale * one.copies,
        scale * one.rank_tokens,
        scale * one.domain_tokens,
        scale[:, :, 0] * one.tokens,
        one.ranks_per_domain,
    )


def shipped_laws(names: tuple[str, ...]) -> dict[str, Law]:
    """The catalog's laws by name."""
    return {name: law(name) for name in names}
