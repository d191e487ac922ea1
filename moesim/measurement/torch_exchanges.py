"""Exchanges between the processes of a group, ready to be timed.

R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.measurement.loads import pair_elements, received_imbalance
from moesim.measurement.plan import Case
from moesim.measurement.torch_door import Tensor, torch
from moesim.randomness import Streams

SEED = 0
"""Of what is sent, and of how unequal exchanges differ: the same on every rank and in every run."""


@dataclass
class Group:
    """This process among those that exchange: its `rank` of `size`, its device, and what carries the bytes.

    `clean`: all ranks came to the end together, and may leave together.
    """

    rank: int
    size: int
    device: torch.device
    backend: str
    clean: bool = False

    def agree(self, value: float) -> float:
        """The greatest of a number over the ranks, the same on each."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return float(found)


def prepare_exchange(case: Case, group: Group) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The exchange as a call, and what its row says beside the case: the bytes that it really sends."""
    dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
    name, each = case.op["collective"], max(case.op["bytes"] // dtype.itemsize // group.size, 1)
    if name in ("all-to-all", "all-to-all-unequal"):
        load = case.op.get("load", "equal")
        pairs = pair_elements(load, group.size, each, Streams(SEED).generator(f"measure/{case.label}/pairs"))
        columns = {"bytes": int(pairs.sum() // group.size) * dtype.itemsize, "imbalance": received_imbalance(pairs)}
        return _all_to_all(pairs, group, dtype, equal=name == "all-to-all"), columns
    size = each * group.size
    send = _drawn(each if name == "all-gather" else size, group, dtype)
    return _EXCHANGES[name](send, group), {"bytes": size * dtype.itemsize}


def _drawn(elements: int, group: Group, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(group.device).manual_seed(Streams(SEED).integer(f"measure/rank{group.rank}") >> 1)
    return torch.randn(elements, generator=generator, device=group.device, dtype=dtype)


def _all_to_all(pairs: NDArray[np.int64], group: Group, dtype: torch.dtype, equal: bool) -> Callable[[], Any]:
    sent, received = pairs[group.rank].tolist(), pairs[:, group.rank].tolist()
    send = _drawn(sum(sent), group, dtype)
    target = torch.empty(sum(received), device=group.device, dtype=dtype)
    sizes = (None, None) if equal else (received, sent)
    return lambda: torch.distributed.all_to_all_single(target, send, *sizes)


def _all_gather(send: Tensor, group: Group) -> Callable[[], Any]:
    target = send.new_empty(send.numel() * group.size)
    return lambda: torch.distributed.all_gather_into_tensor(target, send)


def _reduce_scatter(send: Tensor, group: Group) -> Callable[[], Any]:
    target = send.new_empty(send.numel() // group.size)
    return lambda: torch.distributed.reduce_scatter_tensor(target, send)


def _all_reduce(send: Tensor, group: Group) -> Callable[[], Any]:
    # Sums of sums would soon overflow; zeros stay what they are, and links and sums take no notice.
    send.mul_(0.0)
    return lambda: torch.distributed.all_reduce(send)


def _ring(send: Tensor, group: Group) -> Callable[[], Any]:
    """Every rank to the next one, all at once."""
    target = torch.empty_like(send)
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size

    def call() -> None:
        pair = [
            torch.distributed.P2POp(torch.distributed.isend, send, to),
            torch.distributed.P2POp(torch.distributed.irecv, target, source),
        ]
        for work in torch.distributed.batch_isend_irecv(pair):
            work.wait()

    return call


_EXCHANGES: dict[str, Callable[[Tensor, Group], Callable[[], Any]]] = {
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-reduce": _all_reduce,
    "point-to-point": _ring,
}
