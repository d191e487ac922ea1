"""The steady state of a deployment in closed form: of one kind of instance, or of prompts and outputs apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from moesim.iteration.law import IterationLaw
from moesim.scenario.serving import ServingScenario
from moesim.serving.demand import Demand, demand_of
from moesim.serving.steady_engine import SteadyEngine, SteadyState, fixed_point

__all__ = ["SteadyState", "steady_state"]


def steady_state(scenario: ServingScenario, laws: Sequence[IterationLaw] | None = None) -> SteadyState:
    """The steady state of `scenario`; one that cannot be is an answer too: `feasible` false, with its binding limit.

    `laws`: of each pool; made anew unless given.
    """
    demand = demand_of(scenario)
    if laws is None:
        laws = [IterationLaw(scenario, pool.instance, pool.phase) for pool in scenario.pools]
    engines = [SteadyEngine(scenario, pool, demand, law) for pool, law in zip(scenario.pools, laws, strict=True)]
    for engine in engines:
        refusal = engine.refusal()
        if refusal is not None:
            return _never(refusal)
    if len(engines) == 2:
        return _apart(demand, *engines)
    return engines[0].closed() if demand.concurrency is not None else engines[0].open(demand.rate)


def _never(binding: str) -> SteadyState:
    return SteadyState(False, binding, inf, inf, 0.0, 0.0, 0.0, 0.0, 1.0, {})


def _apart(demand: Demand, first: SteadyEngine, then: SteadyEngine) -> SteadyState:
    """Prompts on one pool, outputs on the other, the KV cache moved between."""
    moved = float(then.law.kv_transfer_seconds(demand.prompt))
    if demand.concurrency is None:
        prefill, decode = first.open(demand.rate), then.open(demand.rate)
        return _joined(prefill, decode, demand, moved)

    def rate(guess: float) -> float:
        prefill, decode = first.open(guess), then.open(guess)
        if not (prefill.feasible and decode.feasible):
            return min(state.requests_per_second for state in (prefill, decode)) * 0.999
        whole = prefill.time_to_first_token + moved + decode.time_per_output_token * (demand.output - 1)
        return demand.concurrency / whole if demand.concurrency else 0.0

    found = fixed_point(rate, 1e-3)
    state = _joined(first.open(found), then.open(found), demand, moved)
    if not state.feasible:  # on the edge of what one of the pools can do
        found = rate(found)
        state = _joined(first.open(found), then.open(found), demand, moved)
    wait = demand.concurrency / found - state.time_per_output_token * (demand.output - 1)
    return replace(state, binding="concurrency", time_to_first_token=max(wait, state.time_to_first_token))


def _joined(prefill: SteadyState, decode: SteadyState, demand: Demand, moved: float) -> SteadyState:
    worse = prefill if not prefill.feasible else decode
    name = "prefill" if not prefill.feasible else "decode"
    return replace(
        decode,
        feasible=prefill.feasible and decode.feasible,
        binding=worse.binding if worse.feasible else f"{name} instances: {worse.binding}",
        time_to_first_token=prefill.time_to_first_token + moved,
        requests_per_second=min(prefill.requests_per_second, decode.requests_per_second),
        output_tokens_per_second=min(prefill.requests_per_second, decode.requests_per_second) * demand.output,
        input_tokens_per_second=min(prefill.requests_per_second, decode.requests_per_second) * demand.prompt,
    )
