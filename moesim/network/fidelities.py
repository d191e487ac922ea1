"""The network models by name: one seam, from who sends how much to whom to the seconds each rank's links are taken.

"port-load" is the busiest port, closed form; "max-min" lets flows share links max-min fairly and follows them to their
ends; "ideal" gives every rank its own links at full rate. For the same traffic the last rank of a tier ends in this
order: ideal <= port-load <= max-min. That holds neither rank by rank (what a link carries for many ends for some of
them before the link is done) nor for whole steps, in which ranks begin apart.
"""

from __future__ import annotations

from moesim.network.fluid import max_min
from moesim.network.portload import NetworkModel, busiest_port, own_port

NETWORKS: dict[str, NetworkModel] = {"port-load": busiest_port, "max-min": max_min, "ideal": own_port}
