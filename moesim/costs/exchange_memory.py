"""Memory that exchanging tokens takes: buffers of a library, and tensors that live while copies are on their way.

Sources: DeepEP's own size hints (csrc/config.hpp: Config, LowLatencyLayout) and HybridEP's allocation for the worst
case; other libraries send and receive the copies themselves. Coefficients in catalog calibration "memory".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from moesim.costs.memory import coefficients


@dataclass(frozen=True)
class Exchange:
    """One rank's part in an exchange, as its buffers see it.

    `tokens` of the rank; `sent` and `received` copies (the latter on the busiest rank); `distinct`: share of the
    copies that go to another rank than the token's other copies; `dispatch` and `combine` bytes of a copy; `ranks` of
    the group, of which `domain` share scale-up links; `multiprocessors` that the library holds.
    """

    tokens: float
    sent: float
    received: float
    distinct: float
    dispatch: float
    combine: float
    hidden: int
    experts: int
    ranks: int
    domain: int
    multiprocessors: int


def exchange_bytes(dispatcher: str, exchange: Exchange, at_once: bool) -> float:
    """Bytes that one exchange takes at its peak; `at_once`: another microbatch's combine runs beside its dispatch."""
    library, there, back = exchange_buffers(dispatcher, exchange)
    return library + (there + back if at_once else max(there, back))


def exchange_buffers(dispatcher: str, exchange: Exchange) -> Parts:
    """The same by its parts; those beside a library's own buffers grow in a straight line with `received`."""
    return _BUFFERS.get(dispatcher, _two_sided)(exchange)


Parts = tuple[float, float, float]
"""Bytes of a library's own buffers, and of the tensors beside them in a dispatch and in a combine."""


def _two_sided(one: Exchange) -> Parts:
    """Copies are laid out for sending, and received before they are sorted by expert; the combine the other way."""
    copies = one.sent + one.received
    return 0.0, copies * one.dispatch, copies * one.combine


def _deepep_normal(one: Exchange) -> Parts:
    """Rings of chunks in both tiers; each rank gets a token once, however many of its experts the token chose."""
    data: dict[str, Any] = coefficients()["deepep_normal"]
    domains, peers = one.ranks // one.domain, min(one.ranks, one.domain)
    channels = one.multiprocessors // 2
    beside = float(data["beside_a_token"])
    chunk = next(tokens for ranks, tokens in data["scale_up_chunk"] if one.ranks <= ranks)
    near = channels * peers * chunk * (2.0 * one.hidden + beside)
    far = channels * domains * data["scale_out_chunk"] * (2.0 * one.hidden + beside) * 2.0 if domains > 1 else 0.0
    arrived = one.received * one.distinct
    return near + far, arrived * one.dispatch, (arrived + one.tokens) * one.combine


def _deepep_low_latency(one: Exchange) -> Parts:
    """Room for every token at every expert, sent and received, twice; and the packed tensor that experts read."""
    data: dict[str, Any] = coefficients()["deepep_low_latency"]
    there = data["header"] + 2.0 * one.hidden  # in bf16, whatever is sent: fp8 with its scales takes less
    back = (2.0 + 2.0 / 128) * one.hidden
    room = one.experts * ceil(one.tokens)
    send, receive = max(one.tokens * there, room * back), room * max(there, back)
    return 2.0 * (send + receive), room * one.dispatch, room * one.combine


def _hybrid_ep(one: Exchange) -> Parts:
    """Room for every token of the group on every rank, in each direction: the worst case, taken at the start."""
    worst = one.ranks * one.tokens
    return worst * (one.dispatch + one.combine), 0.0, one.tokens * one.combine


_BUFFERS = {
    "deepep-normal": _deepep_normal,
    "deepep-low-latency": _deepep_low_latency,
    "hybrid-ep": _hybrid_ep,
}
