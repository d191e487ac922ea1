"""Collectives, all-to-all, and dispatch with combine: the network laws on the group that a case describes.

R ranks, K choices, N domains.
"""

from __future__ import annotations

import numpy as np

from moesim.errors import InfeasibleError, UserError
from moesim.network import collectives
from moesim.network.demand import Choices, Demand, balanced_demand, nearest_format
from moesim.network.dispatchers import (
    ExchangeTimes,
    collective_trust,
    dispatcher,
    nearest_dispatcher,
    payload,
    prepare_seconds,
)
from moesim.network.dispatchers.family import LawDispatcher
from moesim.network.topology import GroupNetwork
from moesim.validation.answer import Prediction, Settings, added, rate, within
from moesim.validation.loads import hottest
from moesim.validation.ops import CollectiveOp, ExchangeOp
from moesim.validation.places import network_of
from moesim.validation.told import foreign, pooled
from moesim.validation.words import collective_name, plain

FORCED = ("balanced", "forced-balance", "forced-balanced", "force-balanced", "forced", "round-robin")
EVEN = ("uniform", "random", "random-uniform", "uniform-random")
FORCED_BY_DEFAULT = ("one-sided-nvl", "two-sided-nvl")
"""Libraries whose own benchmark forces balance: each token to as many different ranks as it has choices."""
NVLINK_ALONE, GENERIC = ("deepep-normal",), "hybrid-ep"
"""Kernels that are ported to other links, and the law of their kind that knows links by their datasheet."""
MOST_RANKS = 4096
PREPARED = "two-sided-nvl"
_NCCL = ("nccl", "rccl", "auto")
_CUSTOM = ("custom", "sglang", "vllm", "trtllm", "tensorrt", "one-shot", "two-shot")
"""Serving frameworks whose own all-reduce has a law of its own."""


def collective(op: CollectiveOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of one collective by itself, and its `bus_bandwidth` and `algorithm_bandwidth` as nccl-tests count."""
    network, name = network_of(op, settings.calibration), collective_name(op.collective)
    trusted = collective_trust(network)
    custom = name == "all-reduce" and any(word in plain(op.library) for word in _CUSTOM)
    unknown = [*_library_notes(op.library, name, custom), *foreign(op)]
    notes = [*trusted.notes, *unknown, *pooled(op)]
    if op.imbalance > 1.0:
        notes.append(f"unequal sizes: the busiest rank has {op.imbalance:g} times the mean")
    if network.ranks == 1:
        raise UserError(f"{name} on one rank moves nothing")
    if name == "all-to-all" and network.ranks > MOST_RANKS:
        raise UserError(f"op.ranks: an all-to-all of at most {MOST_RANKS} ranks is predicted, got {network.ranks}")
    basis, relative = trusted.basis, trusted.relative
    if unknown:
        law = network.law("custom-all-reduce" if custom else "nccl-fabric" if network.domains > 1 else "nccl-domain")
        basis, relative = "assumed", max(relative, law.band_elsewhere)
    time = within(_seconds(name, network, op, custom), relative, basis, notes)
    steps = {"all-reduce": 2 * (op.ranks - 1) / op.ranks, "point-to-point": 1.0}.get(name, (op.ranks - 1) / op.ranks)
    return {"time": time, "algorithm_bandwidth": rate(op.bytes, time), "bus_bandwidth": rate(op.bytes * steps, time)}


def _seconds(name: str, network: GroupNetwork, op: CollectiveOp, custom: bool) -> float:
    size = op.bytes * op.imbalance
    if name == "all-to-all":
        return float(collectives.all_to_all(network, op.bytes, op.imbalance))
    if name == "all-gather":
        return float(collectives.all_gather(network, size / network.ranks, "alone"))
    if name == "reduce-scatter":
        return float(collectives.reduce_scatter(network, size, "alone"))
    if name == "all-reduce":
        own = collectives.custom_all_reduce(network, size) if custom else collectives.all_reduce(network, size, "alone")
        return float(own)
    return float(collectives.point_to_point(network, size))


def _library_notes(library: str, name: str, custom: bool) -> list[str]:
    if custom or plain(library).startswith(_NCCL):
        return []
    return [f"library {library}: no calibration of its own for {name}, answered by nccl's"]


def dispatch_combine(op: ExchangeOp, settings: Settings) -> dict[str, Prediction]:
    """`dispatch_time` and `combine_time` of the busiest rank, `time` of both; of two-sided kernels `prepare_time`."""
    name, note = nearest_dispatcher(op.library)
    network = network_of(op, settings.calibration)
    if network.ranks == 1:
        raise InfeasibleError("one rank: nothing to exchange")
    unknown = [*([note] if note else []), *foreign(op)]
    if name in NVLINK_ALONE and network.kind == "xgmi":
        unknown.append(f"{name} on {network.kind}: no law of its own, answered by {GENERIC}")
        name = GENERIC
    times, told = exchange_times(op, name, network)
    notes = [*unknown, *pooled(op), *told, *times.notes]
    basis, relative = times.basis, times.relative
    if unknown:
        basis, relative = "assumed", max(relative, _elsewhere(name, network))
    parts = {
        "dispatch_time": within(float(times.dispatch.busiest), relative, basis, notes),
        "combine_time": within(float(times.combine.busiest), relative, basis, notes),
    }
    found = {**parts, "time": added(parts.values())}
    if name == PREPARED:
        seconds = prepare_seconds(float(op.tokens), network)
        found["prepare_time"] = within(seconds, relative, basis, notes)
    return found


def _elsewhere(name: str, network: GroupNetwork) -> float:
    """The range of a dispatcher's law away from what it was fitted on."""
    found = dispatcher(name)
    return network.law(found.calibration(network)).band_elsewhere if isinstance(found, LawDispatcher) else 0.0


def exchange_times(op: ExchangeOp, name: str, network: GroupNetwork) -> tuple[ExchangeTimes, list[str]]:
    """What dispatcher `name` takes, with notes on what was assumed."""
    demand, notes = _demand(op, name, network)
    formats = [nearest_format(given) for given in (op.dispatch, op.combine)]
    size = payload(formats[0][0], formats[1][0], op.hidden, op.top_k, op.experts)
    times = dispatcher(name).times(demand, network, size, op.sms, notify=op.notify)
    return times, [*notes, *(note for _, note in formats if note)]


def _demand(op: ExchangeOp, library: str, network: GroupNetwork) -> tuple[Demand, list[str]]:
    """What is to be moved, and notes where the case does not say how tokens fall, or says that unevenly."""
    load = plain(op.load) if isinstance(op.load, str) else ("uneven" if op.load else None)
    forced = load in FORCED or (load is None and library in FORCED_BY_DEFAULT)
    groups = (op.groups.count, op.groups.top) if op.groups else (1, 1)
    if op.experts % groups[0] or op.experts // groups[0] * groups[1] < op.top_k:
        raise UserError(f"op.groups: {groups[1]} of {groups[0]} groups of {op.experts} experts do not hold {op.top_k}")
    choices = Choices(op.experts, op.top_k, *groups)
    unsaid = [f"{library}: forced balance, as its benchmark runs; load: uniform is random experts"]
    shape = (network.ranks, network.ranks_per_domain, float(op.tokens))
    if forced and op.imbalance is None:
        return forced_demand(choices, *shape), unsaid if load is None else []
    even = balanced_demand(choices, *shape)
    busiest, told = op.imbalance or 1.0, tuple[str, ...]()
    if op.imbalance is None and op.load is not None and load not in EVEN:
        busiest, told = hottest(op.load, op.tokens * network.ranks, op.top_k, op.experts, network.ranks)
    if busiest <= 1.0:
        return even, [*told]
    return uneven_demand(even, busiest), [
        f"uneven load: one rank gets {busiest:.3g} times the mean, the others alike",
        *told,
    ]


def uneven_demand(even: Demand, hottest: float) -> Demand:
    """The demand [R, R] where rank 0 gets `hottest` times the mean and the others share the rest; a token goes to a
    place at most once."""
    hottest = min(hottest, float(even.ranks))
    factor = np.full(even.ranks, (even.ranks - hottest) / max(1, even.ranks - 1))
    factor[0] = hottest
    starts = np.arange(0, even.ranks, even.ranks_per_domain)
    by_domain = np.add.reduceat(factor, starts) / np.diff(np.append(starts, even.ranks))
    most = even.home_tokens[:, None]
    return Demand(
        copies=even.copies * factor,
        rank_tokens=np.minimum(even.rank_tokens * factor, most),
        domain_tokens=np.minimum(even.domain_tokens * by_domain, most),
        tokens=even.tokens,
        ranks_per_domain=even.ranks_per_domain,
    )


def forced_demand(choices: Choices, ranks: int, ranks_per_domain: int, tokens: float) -> Demand:
    """The demand [R, R] where each token goes to as many different ranks, and domains, as it can."""
    domains = -(-ranks // ranks_per_domain)
    members = np.bincount(np.arange(ranks) // ranks_per_domain)
    each = tokens * min(ranks, choices.top_k) / ranks
    of_domain = np.minimum(tokens, tokens * min(domains, choices.top_k) * members / ranks)
    return Demand(
        copies=np.full((ranks, ranks), tokens * choices.top_k / ranks),
        rank_tokens=np.full((ranks, ranks), each),
        domain_tokens=np.tile(of_domain, (ranks, 1)),
        tokens=np.full(ranks, float(tokens)),
        ranks_per_domain=ranks_per_domain,
    )
