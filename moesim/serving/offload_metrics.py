"""What a result says of experts in host memory: hits, waiting, and what stands there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.iteration.batch import Batch
from moesim.iteration.law import IterationLaw
from moesim.iteration.offload import host_bytes
from moesim.provenance import Quantity
from moesim.scenario.serving import ServingScenario
from moesim.serving.recorder import Log
from moesim.units import show

FETCH = "expert_fetch"


def fetches(laws: Sequence[IterationLaw]) -> bool:
    """Whether any GPU fetches experts."""
    return any(law.fetch is not None for law in laws)


def offload_metrics(
    scenario: ServingScenario, laws: Sequence[IterationLaw], held: float | None, waiting: float
) -> dict[str, Quantity]:
    """Metrics of experts in host memory; nothing where all are in GPU memory. `held`: share of the wanted experts of
    decode iterations that the GPU has; `waiting`: share of the iterations' time."""
    offload = scenario.placement.offload
    if offload is None or not fetches(laws):
        return {}
    kept = f"{offload.resident} experts of each layer kept on each GPU, the {offload.keep} ones"
    ahead = (
        f"prefetch names {offload.prefetch_accuracy:g} of them rightly" if offload.prefetch != "none" else "no prefetch"
    )
    there = max(host_bytes(scenario, pool.instance) for pool in scenario.pools)
    found = {
        "expert_fetch_fraction": Quantity.exact(
            waiting, "fraction", f"over {show(offload.host_bandwidth, 'B/s')}; {ahead}", "assumed"
        ),
        "host_memory_per_gpu": Quantity.exact(there, "B", "the catalog knows no host memory: see that yours has it"),
    }
    if held is not None:
        found["expert_cache_hit_fraction"] = Quantity.exact(held, "fraction", kept, "assumed")
    return found


def held_expected(laws: Sequence[IterationLaw], decoding: float) -> float | None:
    """The expected share of hits of iterations that decode so many requests; None where none decodes."""
    none, one = np.zeros(1), np.array([max(decoding, 1.0)])
    missing = laws[-1].expected_missing(Batch(none, none, one, none)) if decoding else None
    return None if missing is None else float(missing.held[0])


def held_in(logs: Sequence[Log]) -> float | None:
    """The same, of a run's decode iterations."""
    wanted = sum(log.wanted for log in logs)
    return 1.0 - sum(log.fetched for log in logs) / wanted if wanted else None
