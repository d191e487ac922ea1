"""`auto`: the fastest dispatcher that runs on a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.errors import InfeasibleError
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Dispatcher, Payload
from moesim.network.topology import GroupNetwork
from moesim.units import show


@dataclass(frozen=True)
class Choice:
    """The dispatcher chosen and why, in a sentence."""

    dispatcher: Dispatcher
    reason: str


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
    able = [dispatcher for dispatcher in known.values() if dispatcher.runs_on(group) is None]
    if not able:
        raise InfeasibleError("no known dispatcher runs on this group")
    if group.ranks == 1:
        return Choice(able[0], "one rank: nothing to exchange")

    def seconds(dispatcher: Dispatcher) -> float:
        times = dispatcher.times(demand, group, payload, multiprocessors)
        return float((times.dispatch.busiest + times.combine.busiest).mean())

    found = sorted(((seconds(dispatcher), dispatcher) for dispatcher in able), key=lambda pair: pair[0])
    best, winner = found[0]
    reason = f"{winner.name} is the fastest that runs here: {show(best, 's')} dispatch + combine at balanced routing"
    if len(found) > 1:
        second, next_best = found[1]
        reason += f", {next_best.name} {show(second, 's')}"
    refused = [str(why) for dispatcher in known.values() if (why := dispatcher.runs_on(group)) is not None]
    return Choice(winner, "; ".join([reason, *refused]))
