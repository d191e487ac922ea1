"""`auto`: the fastest dispatcher that runs on a group and is meant for its demand; and all of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.errors import InfeasibleError
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Dispatcher, ExchangeTimes, Payload
from moesim.network.topology import GroupNetwork
from moesim.provenance import Basis
from moesim.units import show


@dataclass(frozen=True)
class Choice:
    """The dispatcher chosen and why, in a sentence."""

    dispatcher: Dispatcher
    reason: str


@dataclass(frozen=True)
class Compared:
    """One dispatcher on one demand: seconds until the last rank ends and bytes that the busiest GPU sends, both ways
    together, means over the batch. `why_not`: why it cannot run (no numbers then), or why `auto` leaves it out.

    `relative` is the range of its seconds, `multiprocessors` the SMs it takes from compute.
    """

    name: str
    dispatch: float | None = None
    combine: float | None = None
    total: float | None = None
    bytes_up: float | None = None
    bytes_out: float | None = None
    multiprocessors: int | None = None
    basis: Basis | None = None
    relative: float | None = None
    notes: tuple[str, ...] = ()
    why_not: str | None = None


def compare(
    known: Mapping[str, Dispatcher],
    demand: Demand,
    group: GroupNetwork,
    payload: Payload,
    multiprocessors: int | None = None,
    network: str = "port-load",
) -> list[Compared]:
    """All of `known`, the fastest first; last those that cannot run."""
    rows = []
    for name, found in known.items():
        refusal = found.runs_on(group)
        if refusal is not None:
            rows.append(Compared(name, why_not=refusal))
        else:
            times = found.times(demand, group, payload, multiprocessors, network)
            rows.append(_row(name, times, found.unfit(demand, group)))
    return sorted(rows, key=lambda row: np.inf if row.total is None else row.total)


def _row(name: str, times: ExchangeTimes, why_not: str | None) -> Compared:
    there, back = times.dispatch, times.combine
    seconds = [float(port.busiest.mean()) for port in (there, back)]
    return Compared(
        name=name,
        dispatch=seconds[0],
        combine=seconds[1],
        total=sum(seconds),
        bytes_up=float((there.bytes_up + back.bytes_up).max(axis=-1).mean()),
        bytes_out=float((there.bytes_out + back.bytes_out).max(axis=-1).mean()),
        multiprocessors=times.multiprocessors,
        basis=times.basis,
        relative=times.relative,
        notes=times.notes,
        why_not=why_not,
    )


def fastest(
    known: Mapping[str, Dispatcher],
    demand: Demand,
    group: GroupNetwork,
    payload: Payload,
    multiprocessors: int | None = None,
) -> Choice:
    """The dispatcher of `known` with the least dispatch + combine time of `demand` (mean over its batch).

    Raises `InfeasibleError` where none runs. Ties go to the first known.
    """
    rows = compare(known, demand, group, payload, multiprocessors)
    able = [row for row in rows if row.why_not is None]
    if not able:
        raise InfeasibleError("no known dispatcher runs on this group")
    winner = known[able[0].name]
    if group.ranks == 1:
        return Choice(winner, "one rank: nothing to exchange")
    best, *others = [f"{row.name} {show(row.total or 0.0, 's')}" for row in able]
    reason = f"{best} dispatch + combine at balanced routing is the fastest that runs here"
    left_out = [row.why_not for row in rows if row.why_not is not None]
    return Choice(winner, "; ".join([reason, *others[:1], *left_out]))
