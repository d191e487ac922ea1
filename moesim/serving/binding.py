"""What kept a simulated deployment from doing more, in the words of the closed form."""

from __future__ import annotations

import numpy as np

from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.simulation import Run
from moesim.serving.window import Worked

WAITING = 0.5
"""Fewer requests in an engine's queue, on average, are no queue."""


def limit(run: Run, scenario: ServingScenario, worked: Worked) -> str:
    """Arrivals, the concurrency of the loop, or the limit that the waiting requests wait for."""
    closed, window = run.requests.concurrency is not None, worked.window
    queues = [pool for pool in scenario.pools if worked.mean("waiting", _only(run, pool)) >= WAITING]
    if not queues or not (closed or window.overloaded):
        return "concurrency" if closed else "arrivals"
    pool = queues[-1]  # where caches find no room behind them, engines for prompts wait too
    used = _uses(scenario, pool, worked, _only(run, pool))
    name = max(used, key=lambda each: used[each])
    where = f"{pool.phase} instances: " if len(scenario.pools) > 1 else ""
    if closed:
        return where + name
    come = run.requests.count / max(float(np.ptp(run.times.arrival)), 1e-9)
    served = float(window.holds(run.times.end).sum()) / window.seconds
    return f"{where}rate: {name} lets the deployment do {served:.3g} requests/s, {come:.3g} come"


def _only(run: Run, pool: Pool) -> list[float]:
    """Weights that leave the engines of one pool."""
    return [float(log.phase == pool.phase) for log in run.logs]


def _uses(scenario: ServingScenario, pool: Pool, worked: Worked, own: list[float]) -> dict[str, float]:
    """How much of each limit of an instance is taken, by its name in the closed form."""
    engine, replicas = scenario.engine, pool.instance.replicas
    shares = {
        "engine.max_requests": worked.mean("requests", own) / (engine.max_requests * replicas),
        "the KV cache": worked.mean("reserved_tokens", own, per_room=True),
    }
    if pool.phase != "decode":
        shares["engine.token_budget (prefill)"] = _budget_use(scenario, pool, worked, own)
    return shares


def _budget_use(scenario: ServingScenario, pool: Pool, worked: Worked, own: list[float]) -> float:
    """Tokens of the mean iteration over the token budget."""
    engine, tokens, iterations = scenario.engine, 0.0, 0.0
    for each, share, weight in zip(worked.columns, worked.shares, own, strict=True):
        decoding = each["decoders"] * each["iterations"] * (1 + engine.drafted)
        tokens += weight * float((share * (each["prefill_tokens"] + decoding)).sum())
        iterations += weight * float((share * each["iterations"]).sum())
    return tokens / max(iterations, 1.0) / (engine.token_budget * pool.instance.replicas)
