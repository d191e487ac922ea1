"""The network models by name: one seam, from who sends how much to whom to the seconds each rank's links are taken.

"port-load" is the busiest port, closed form; "max-min" lets flows share links max-min fairly and follows them to their
ends; "ideal" gives every rank its own links at full rate. For the same traffic ideal <= port-load <= max-min.
"""

from __future__ import annotations

from moesim.network.fluid import max_min
from moesim.network.portload import NetworkModel, busiest_port, own_port

NETWORKS: dict[str, NetworkModel] = {"port-load": busiest_port, "max-min": max_min, "ideal": own_port}
