"""A plan: which layouts and GPUs to search, within which limits, for what. The file that `moesim plan` reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moesim.specs.base import Spec
from moesim.units import DollarsPerHour, Watts, parse

Objective = Literal["cost", "time", "tokens-per-dollar", "fewest-gpus"]
LOWEST_HEADROOM = -0.15
"""How far over a GPU's memory a layout may be asked to go: the law's own bound of what was ever run."""


def _dollars(value: object) -> float:
    return parse(value, "$")


def _share(value: object) -> float:
    return parse(value, "1")


Dollars = Annotated[float, BeforeValidator(_dollars), Field(gt=0.0, le=1e15)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0.0, le=1.0)]
Headroom = Annotated[float, BeforeValidator(_share), Field(ge=LOWEST_HEADROOM, le=0.95)]


class LimitsSpec(Spec):
    """What a layout has to keep to. `days` and `dollars` are for `workload.total_tokens`; `dropped_fraction` of routed
    copies; `power` of all GPUs at their rating; `memory_headroom`: share of a GPU's memory that stays free (unless
    stated, what the memory law needs to say "fits")."""

    days: Annotated[float, Field(gt=0.0, le=36500.0)] | None = None
    dollars: Dollars | None = None
    dropped_fraction: Share | None = None
    power: Watts | None = None
    gpus: Annotated[int, Field(strict=True, ge=1, le=1 << 22)] | None = None
    memory_headroom: Headroom | None = None


class PlanSpec(Spec):
    """One plan. `scenario`: what stays the same, a scenario's keys or a scenario file beside the plan; `models`: plans
    each of them; `search` maps a scenario's field ("parallelism.tensor") to the values to try; `prices`: dollars an
    hour by GPU. Of all legal layouts at most `candidates` are screened, and the best `simulate` simulated."""

    name: str = Field(default="plan", pattern=r"^[\w+][\w.+ -]{0,99}$")
    question: str = ""
    scenario: dict[str, Any] | str = Field(default_factory=dict)
    models: tuple[str | dict[str, Any], ...] = Field(default=(), max_length=100)
    search: dict[str, Any] = Field(default_factory=dict)
    limits: LimitsSpec = LimitsSpec()
    objective: Objective = "cost"
    prices: dict[str, DollarsPerHour] = Field(default_factory=dict)
    simulate: Annotated[int, Field(strict=True, ge=0, le=1000)] = 5
    candidates: Annotated[int, Field(strict=True, ge=1, le=5_000_000)] = 100_000
