"""The steady state of a deployment in closed form: of one kind of instance, or of prompts and outputs apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from moesim.iteration.law import IterationLaw
from moesim.scenario.serving import ServingScenario
from moesim.serving.demand import Demand, demand_of
from moesim.serving.steady_engine import SteadyEngine, SteadyState

__all__ = ["SteadyState", "steady_state"]
_HALVINGS, _HARDLY_ANY = 14, 1e-9


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

    def at(rate: float) -> SteadyState:
        return _joined(first.open(rate), then.open(rate), demand, moved)

    concurrency = demand.concurrency
    if concurrency is None:
        return at(demand.rate)

    def left_over(rate: float) -> float:
        """Requests of the loop that a rate leaves over."""
        state = at(rate)
        return concurrency - rate * state.request_latency if state.feasible else -inf

    found = _falling_zero(left_over, concurrency / at(_HARDLY_ANY).request_latency)
    state = at(found)
    wait = concurrency / found - state.time_per_output_token * (demand.output - 1)
    return replace(state, binding="concurrency", time_to_first_token=max(wait, 0.0))


def _falling_zero(law: Callable[[float], float], most: float) -> float:
    """Where `law`, which falls, has its zero, between 0 and `most`."""
    least = 0.0
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if law(middle) > 0 else (least, middle)
    return least


def _joined(prefill: SteadyState, decode: SteadyState, demand: Demand, moved: float) -> SteadyState:
    able = prefill.feasible, decode.feasible
    prefills = prefill.requests_per_second < decode.requests_per_second if able == (False, False) else not able[0]
    name, worse = ("prefill", prefill) if prefills else ("decode", decode)
    return replace(
        decode,
        feasible=prefill.feasible and decode.feasible,
        binding=worse.binding if worse.feasible else f"{name} instances: {worse.binding}",
        time_to_first_token=prefill.time_to_first_token + moved + decode.seat_wait,
        requests_per_second=min(prefill.requests_per_second, decode.requests_per_second),
        output_tokens_per_second=min(prefill.requests_per_second, decode.requests_per_second) * demand.output,
        input_tokens_per_second=min(prefill.requests_per_second, decode.requests_per_second) * demand.prompt,
    )
