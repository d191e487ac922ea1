"""How much of a dispatch the links of an expert-parallel group are taken. R ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinkUse:
    """Shares [R] of one dispatch of `seconds` for which each rank's links, with what it shares of the fabric, are taken
    at their full rate: `up` the scale-up links and `out` the NIC, sending and receiving; means over layers.

    `domain` [R] is the scale-up domain of each rank and `gpu` [R] its number in the cluster; `bytes_up` and `bytes_out`
    [R] are what it sends. `scale_up`, `scale_out`: the links in words; `scale_out` is empty where the group needs none.
    """

    seconds: float
    dispatcher: str
    scale_up: str
    scale_out: str
    domain: NDArray[np.int64]
    gpu: NDArray[np.int64]
    up_send: Floats
    up_receive: Floats
    out_send: Floats
    out_receive: Floats
    bytes_up: Floats
    bytes_out: Floats

    def frame(self) -> pd.DataFrame:
        """One row a rank."""
        import pandas as pd

        columns = {
            "rank": np.arange(len(self.gpu)),
            "gpu": self.gpu,
            "domain": self.domain,
            "scale_up_sending": self.up_send,
            "scale_up_receiving": self.up_receive,
            "scale_out_sending": self.out_send,
            "scale_out_receiving": self.out_receive,
            "bytes_scale_up": self.bytes_up,
            "bytes_scale_out": self.bytes_out,
        }
        return pd.DataFrame(columns)


def link_use_of(model: StepModel, routed: RoutedWork) -> LinkUse:
    """The links' use in the mean dispatch of `routed`."""
    found, network, fabric = routed.dispatch, model.mover.network, model.scenario.cluster.fabric
    seconds = float(found.busiest.mean())

    def mean(name: str) -> Floats:
        values = np.asarray(getattr(found, name), np.float64)
        return np.asarray(values.reshape(-1, values.shape[-1]).mean(axis=0))

    def share(name: str) -> Floats:
        return mean(name) / seconds if seconds else np.zeros(network.ranks)

    crosses = network.domains > 1
    return LinkUse(
        seconds=seconds,
        dispatcher=model.mover.dispatcher.name,
        scale_up=network.kind if network.ranks_per_domain > 1 else "",
        scale_out=(getattr(fabric, "name", "") or fabric.kind) if crosses else "",
        domain=np.asarray(network.domain, np.int64),
        gpu=np.asarray(network.gpu, np.int64),
        up_send=share("up_send"),
        up_receive=share("up_receive"),
        out_send=share("out_send"),
        out_receive=share("out_receive"),
        bytes_up=mean("bytes_up"),
        bytes_out=mean("bytes_out"),
    )
