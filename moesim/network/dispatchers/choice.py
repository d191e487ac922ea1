"""`auto`: the fastest dispatcher that runs on a group and is meant for its demand, and of several that are equally fast
as far as their laws can tell the one whose law is best known there; and all of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.errors import InfeasibleError
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Dispatcher, ExchangeTimes, Payload
from moesim.network.topology import GroupNetwork
from moesim.provenance import Basis, worst
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

    Those that no more than the law `common`'s `auto_tie`, nor more than the range of either, are apart count as equal:
    of them the best basis goes first, then the narrowest range. Raises `InfeasibleError` where none runs.
    """
    return selected(known, compare(known, demand, group, payload, multiprocessors), group)


def selected(known: Mapping[str, Dispatcher], rows: list[Compared], group: GroupNetwork) -> Choice:
    """The choice among rows as `compare` orders them."""
    able = [row for row in rows if row.why_not is None]
    if not able:
        raise InfeasibleError("no known dispatcher runs on this group")
    if group.ranks == 1:
        return Choice(known[able[0].name], "one rank: nothing to exchange")
    tied = [row for row in able if _apart(able[0], row) <= group.law("common").assumed("auto_tie")]
    chosen = _best_known(tied)
    left_out = [row.why_not for row in rows if row.why_not is not None]
    return Choice(known[chosen.name], "; ".join([_reason(chosen, able), *left_out]))


def _best_known(rows: list[Compared]) -> Compared:
    """Of the best basis the one of the narrowest range, of those the first."""
    bases = [row.basis for row in rows if row.basis is not None]
    best = next((basis for basis in bases if all(worst([basis, other]) == other for other in bases)), None)
    return min((row for row in rows if row.basis == best), key=lambda row: row.relative or 0.0)


def _apart(fastest: Compared, row: Compared) -> float:
    """How much longer it takes than the fastest; without bound where that is more than the range of either."""
    longer = (row.total or 0.0) / fastest.total - 1 if fastest.total else 0.0
    return longer if longer <= min(fastest.relative or 0.0, row.relative or 0.0) else np.inf


def _reason(chosen: Compared, able: list[Compared]) -> str:
    """Why it is taken, and how near the next one is."""
    best = f"{_told(chosen)} dispatch + combine at balanced routing"
    if chosen is not able[0]:
        reason = f"{best} against {_told(able[0])}, within the range of both, and its law is better known here"
        return f"{reason}: {_range(chosen)} against {_range(able[0])}"
    if len(able) == 1:
        return f"{best} is the only one that runs here and is meant for this"
    following = f"against {_told(able[1])}"
    near = np.isfinite(_apart(chosen, able[1]))
    return f"{best} is the fastest that runs here, {following}{', within the range of both' if near else ''}"


def _told(row: Compared) -> str:
    return f"{row.name} {show(row.total or 0.0, 's')}"


def _range(row: Compared) -> str:
    return f"{row.basis}, 90 % within {row.relative or 0.0:.0%}"
