"""One GPU that holds some of a model's experts while it decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import moesim
from moesim.iteration.law import Batch, IterationLaw
from moesim.scenario.serving import ServingScenario

SCENARIOS = Path(__file__).parents[1] / "scenarios" / "serving"
EDGE, WORKSTATION = (
    SCENARIOS / "edge-gpt-oss-120b-1-jetson.yaml",
    SCENARIOS / "workstation-mixtral-8x7b-1-rtx-4090.yaml",
)
BASE: dict[str, Any] = {
    "model": "gpt-oss-20b",
    "cluster": {"gpu": "jetson-orin-agx-64g", "gpus": 1, "fabric": "none"},
    "instance": {"gpus": 1},
    "workload": {
        "kind": "decode",
        "requests": 30,
        "input_tokens": 256,
        "output_tokens": 96,
        "arrivals": {"kind": "closed", "concurrency": 1},
    },
    "engine": {"token_budget": 512, "max_requests": 16},
    "precision": {"expert_weights": "mxfp4"},
    "routing": {"load": {"zipf": 0.7}},
}
SPEED, HITS, WAITING = "output_tokens_per_second", "expert_cache_hit_fraction", "expert_fetch_fraction"


def load(*settings: str, **offload: Any) -> ServingScenario:
    """The base with `offload` (8 GB/s unless stated); without any it holds all experts."""
    placement = {"offload": {"host_bandwidth": "8 GB/s", **offload}} if offload else {}
    found = moesim.load({**BASE, "placement": placement}, settings)
    assert isinstance(found, ServingScenario)
    return found


def estimated(metric: str, *settings: str, **offload: Any) -> float:
    return moesim.estimate(load(*settings, **offload)).summary[metric].value


def law_of(*settings: str, **offload: Any) -> IterationLaw:
    scenario = load(*settings, **offload)
    return IterationLaw(scenario, scenario.pools[0].instance, "decode")


def decode(requests: float) -> Batch:
    none = np.zeros(1)
    return Batch(none, none, np.array([requests]), np.array([300.0 * requests]))
