"""A small serving scenario; and engines with exact service times, a linear law of an iteration, so that queueing theory
can be held against it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moesim
from moesim.iteration.batch import Batch
from moesim.randomness import Streams
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving.deployment import EnginePool
from moesim.serving.engine import Rules
from moesim.serving.imbalance import Imbalances
from moesim.serving.requests import Requests
from moesim.serving.result import ServingResult

Floats = NDArray[np.float64]
SERVED: dict[str, Any] = {
    "name": "small",
    "question": "How quick?",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8, "fabric": "none"},
    "instance": {"gpus": 4, "expert": 4},
    "workload": {
        "kind": "serving",
        "requests": 400,
        "input_tokens": {"mean": 500, "deviation": 300},
        "output_tokens": {"low": 20, "high": 120},
        "arrivals": {"kind": "poisson", "rate": 60},
        "limits": {"time_to_first_token": "100 ms", "time_per_output_token": "20 ms"},
    },
    "routing": {"load": "olmoe-like"},
    "prices": {"gpu_hour": 2.5, "electricity": 0.1},
}


LLAMA: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus": 2},
    "instance": {"gpus": 1},
    "workload": {
        "kind": "serving",
        "requests": 2000,
        "input_tokens": 1000,
        "output_tokens": {"mean": 200, "deviation": 100},
        "arrivals": {"kind": "poisson", "rate": 100000},
    },
}
PREFILL = ("workload.kind=prefill", "workload.output_tokens=null")
RATES = ("requests_per_second", "output_tokens_per_second", "input_tokens_per_second")


def scenario(**changes: Any) -> ServingScenario:
    """The small scenario with dotted keys changed ("workload__arrivals" for workload.arrivals)."""
    return load_serving(SERVED, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()])


def llama(*settings: str) -> ServingResult:
    """The simulation of a dense model's two engines."""
    return moesim.simulate(load_serving(LLAMA, settings))


@dataclass(frozen=True)
class LinearLaw:
    """Seconds of an iteration: a constant and so much for each part of the batch, times the imbalance."""

    constant: float = 0.0
    prefill_token: float = 0.0
    prefill_pair: float = 0.0
    decode_request: float = 0.0
    context_token: float = 0.0
    transfer_token: float = 0.0

    def seconds(self, batch: Batch, imbalance: Floats | None = None) -> Floats:
        return np.asarray(
            (
                self.constant
                + self.prefill_token * batch.prefill_tokens
                + self.prefill_pair * batch.prefill_context
                + self.decode_request * batch.decode_requests
                + self.context_token * batch.decode_context
            )
            * (1.0 if imbalance is None else imbalance)
        )

    def kv_transfer_seconds(self, tokens: float) -> float:
        return self.transfer_token * tokens


def rules(**changes: Any) -> Rules:
    """One attention replica with room for everything."""
    return Rules(**{"replicas": 1, "token_budget": 8192, "max_requests": 256, "kv_tokens": 1 << 40, **changes})


def pool(
    law: LinearLaw, phase: Any = "mixed", count: int = 1, seed: int = 0, law_of_peaks: Any = None, **of_rules: Any
) -> EnginePool:
    """Engines of one kind under a linear law."""
    return EnginePool(phase, count, rules(**of_rules), law, law_of_peaks or Imbalances.even(), Streams(seed))


def requests(arrival: Any, prompts: Any, outputs: Any, concurrency: int | None = None, cached: Any = 0) -> Requests:
    """Requests from arrays or single numbers."""
    arrival = np.asarray(arrival, np.float64)
    shape = arrival.shape
    numbers = (np.broadcast_to(np.asarray(value, np.int64), shape).copy() for value in (prompts, outputs, cached))
    return Requests(arrival, *numbers, concurrency)
