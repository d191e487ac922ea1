"""Dispatchers by name: the laws of the libraries that move tokens to experts and back."""

from __future__ import annotations

from moesim.errors import UnknownNameError
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import (
    Dispatcher,
    ExchangeTimes,
    Payload,
    PortTimes,
    payload,
)
from moesim.network.dispatchers.choice import Choice, Compared, fastest
from moesim.network.dispatchers.deepep import DeepEpNormal
from moesim.network.dispatchers.gather import AllGatherReduceScatter
from moesim.network.dispatchers.hybrid import HybridEp
from moesim.network.dispatchers.low_latency import DeepEpLowLatency
from moesim.network.dispatchers.names import nearest
from moesim.network.dispatchers.nccl import NcclAllToAll
from moesim.network.dispatchers.one_sided import OneSidedNvl
from moesim.network.dispatchers.trust import Trust, collective_trust
from moesim.network.dispatchers.two_level import Hierarchical
from moesim.network.dispatchers.two_sided import TwoSidedNvl, prepare_seconds
from moesim.network.topology import GroupNetwork

__all__ = [
    "DISPATCHERS",
    "Choice",
    "Compared",
    "Dispatcher",
    "ExchangeTimes",
    "Payload",
    "PortTimes",
    "Trust",
    "choose",
    "collective_trust",
    "dispatcher",
    "nearest_dispatcher",
    "payload",
    "prepare_seconds",
]

_ALL: tuple[Dispatcher, ...] = (
    NcclAllToAll(),
    Hierarchical(),
    DeepEpNormal(),
    DeepEpLowLatency(),
    HybridEp(),
    OneSidedNvl(),
    TwoSidedNvl(),
    AllGatherReduceScatter(),
)
DISPATCHERS: dict[str, Dispatcher] = {found.name: found for found in _ALL}


def dispatcher(name: str) -> Dispatcher:
    """The dispatcher called `name`; raises `UnknownNameError`."""
    if name not in DISPATCHERS:
        raise UnknownNameError("dispatcher", name, DISPATCHERS)
    return DISPATCHERS[name]


def nearest_dispatcher(name: str) -> tuple[str, str]:
    """The dispatcher that answers for a library by any name, and a note where it was not fitted on that library."""
    return nearest(name, DISPATCHERS)


def choose(demand: Demand, group: GroupNetwork, payload: Payload, multiprocessors: int | None = None) -> Choice:
    """What `auto` means for this group: the fastest dispatcher that runs, judged on `demand` (balanced routing)."""
    return fastest(DISPATCHERS, demand, group, payload, multiprocessors)
