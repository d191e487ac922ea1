"""The metric that tells deployments of one workload apart: what the hardware sets, not the arrivals."""

from __future__ import annotations

from moesim.scenario.serving import ServingScenario

RATES = (
    "output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "input_tokens_per_second",
    "requests_per_second",
)
"""Metrics that open arrivals set, as long as the deployment keeps up; what costs follow from them too."""
COSTS = ("gpu_hours_per_million_output_tokens", "cost_per_million_output_tokens")


def is_closed(scenario: ServingScenario) -> bool:
    """Whether the next request comes when one ends, so that the deployment sets the pace."""
    return scenario.workload.arrivals.kind == "closed"


def headline(scenario: ServingScenario) -> str:
    """In a closed loop the tokens a second and GPU; else a latency, for tokens a second are those that come."""
    prefill = scenario.workload.kind == "prefill"
    if is_closed(scenario):
        return "input_tokens_per_second" if prefill else "output_tokens_per_second_per_gpu"
    return "time_to_first_token" if prefill else "time_per_output_token"
