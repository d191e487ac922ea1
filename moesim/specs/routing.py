"""How tokens choose experts: the router, the load it produces, and what happens above capacity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesim.specs.base import SourcedSpec, Spec

Dialect = Literal["switch", "gshard", "megatron", "deepspeed", "tutel", "megablocks", "v-moe", "mesh-tf"]
Overflow = Literal["drop"]
Priority = Literal["position"]


class CapacitySpec(Spec):
    """Expert capacity: `factor` x the even share of tokens, rounded as the `dialect` (a library) rounds it."""

    factor: float = Field(gt=0.0, le=1000.0)
    dialect: Dialect = "megatron"
    overflow: Overflow = "drop"
    priority: Priority = "position"
    pad: bool = False


Skew = Annotated[float, Field(ge=0.0, le=5.0)]


class LoadProfile(SourcedSpec):
    """A named statement of how uneven the router's choices are.

    Popularity of experts in a layer: `zipf` (the weight of the expert of rank r is r^-zipf, ranks shuffled by layer)
    or `log_normal` (standard deviation of the log weight); one value for all layers, or a (low, high) range over which
    layers are spread evenly. `sequence_tilt` is the standard deviation of a sequence's own log-normal tilt of every
    weight: its domain.
    """

    zipf: Skew | tuple[Skew, Skew] | None = None
    log_normal: Skew | tuple[Skew, Skew] | None = None
    sequence_tilt: float = Field(default=0.0, ge=0.0, le=5.0)
    domains: tuple[str, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _one_popularity(self) -> LoadProfile:
        if self.zipf is not None and self.log_normal is not None:
            raise ValueError("gives both zipf and log_normal; popularity has one law")
        return self


class RoutingSpec(Spec):
    """`router` is `model-default`, a router's name, or a name with its parameters."""

    router: str | dict[str, Any] = "model-default"
    load: LoadProfile
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0
    capacity: Literal["dropless"] | CapacitySpec = "dropless"
