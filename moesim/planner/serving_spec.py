"""A plan of serving: which GPUs and which engines to search, within which limits, for what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from moesim.specs.base import Spec
from moesim.specs.plan import Dollars, Headroom, Share
from moesim.units import DollarsPerHour, Seconds

Objective = Literal["cost", "fewest-gpus", "throughput", "latency"]
LATENCIES = ("time_to_first_token", "time_per_output_token", "request_latency")


class ServingLimits(Spec):
    """What a deployment has to keep to. Latencies are those of the median request (of the mean one by the closed form),
    or of all but one in a hundred (`_p99`, by the simulation); `goodput_fraction`: of requests that keep the stated
    latencies, by the simulation; `memory_headroom`: share of the memory given to the engine that weights and buffers
    leave to the KV cache; `dollars_per_hour` of all GPUs of the cluster."""

    time_to_first_token: Seconds | None = None
    time_to_first_token_p99: Seconds | None = None
    time_per_output_token: Seconds | None = None
    time_per_output_token_p99: Seconds | None = None
    request_latency: Seconds | None = None
    request_latency_p99: Seconds | None = None
    goodput_fraction: Share | None = None
    dollars_per_hour: Dollars | None = None
    dollars_per_million_tokens: Dollars | None = None
    memory_headroom: Headroom | None = None
    gpus: Annotated[int, Field(strict=True, ge=1, le=1 << 22)] | None = None

    @property
    def simulated(self) -> tuple[str, ...]:
        """Those stated that only the simulation can judge."""
        names = (*(f"{name}_p99" for name in LATENCIES), "goodput_fraction")
        return tuple(name for name in names if getattr(self, name) is not None)


class ServingPlanSpec(Spec):
    """One plan. `scenario`: what stays the same, a serving scenario's keys or a file beside the plan; `models`: plans
    each of them; `search` maps a field ("instance.tensor") to the values to try; `prices`: dollars an hour by GPU. The
    best `simulate` candidates are simulated."""

    name: str = Field(default="plan", pattern=r"^[\w+][\w.+ -]{0,99}$")
    question: str = ""
    scenario: dict[str, Any] | str = Field(default_factory=dict)
    models: tuple[str | dict[str, Any], ...] = Field(default=(), max_length=100)
    search: dict[str, Any] = Field(default_factory=dict)
    limits: ServingLimits = ServingLimits()
    objective: Objective = "cost"
    prices: dict[str, DollarsPerHour] = Field(default_factory=dict)
    simulate: Annotated[int, Field(strict=True, ge=0, le=1000)] = 3
