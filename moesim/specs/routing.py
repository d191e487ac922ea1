"""How tokens choose experts: the router, the load it produces, and what happens above capacity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from moesim.specs.base import SourcedSpec, Spec

Dialect = Literal["switch", "gshard", "megatron", "deepspeed", "tutel", "megablocks", "v-moe", "mesh-tf"]
Scope = Literal["source-rank", "whole-group"]
Overflow = Literal["drop", "next-best", "reroute"]
Priority = Literal["position", "probability", "batch-prioritized", "random"]
Order = Literal["choice-major", "token-major"]
Rounding = Literal["down", "up", "nearest"]
Rows = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]


class CapacitySpec(Spec):
    """Expert capacity: `factor` x the even share of tokens, rounded and shared out as the `dialect` (a library) does.

    `rounding`, `minimum`, `multiple`, `scope`, `priority` and `order` replace the dialect's own where given.
    `priority`: who stays when an expert is full: the first in `order` (all first choices before all second ones, or
    token by token), the highest gate of each expert ("probability"), the tokens of highest first gate
    ("batch-prioritized"), or anyone ("random"). `overflow`: a copy too many is dropped, goes to the token's next best
    expert with room, or is rerouted to a random one with room ("recycle" is Hunyuan's name of that). `pad`: every
    expert computes, and the wire carries, the whole capacity. `per`: the capacity is each expert's, or, as in
    DeepSeek-V2, that of all experts of a rank together, where the lowest gates are dropped.
    """

    factor: float = Field(gt=0.0, le=1000.0)
    dialect: Dialect = "megatron"
    overflow: Overflow = "drop"
    priority: Priority | None = None
    order: Order | None = None
    scope: Scope | None = None
    rounding: Rounding | None = None
    minimum: Rows | None = None
    multiple: Rows | None = None
    pad: bool = False
    per: Literal["expert", "rank"] = "expert"

    @model_validator(mode="after")
    def _a_rank_drops(self) -> CapacitySpec:
        others = (self.rounding, self.minimum, self.multiple, self.order)
        if self.per == "rank" and (self.pad or self.overflow != "drop" or self.priority not in (None, "probability")):
            raise ValueError("capacity per rank drops the lowest gates: no pad, overflow or other priority with it")
        if self.per == "rank" and any(value is not None for value in others):
            raise ValueError("capacity per rank drops the lowest gates: no rounding, minimum, multiple, order with it")
        return self

    @field_validator("overflow", mode="before")
    @classmethod
    def _hunyuans_name(cls, value: Any) -> Any:
        return "reroute" if value == "recycle" else value

    @field_validator("priority", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return "probability" if value == "probs" else value


Skew = Annotated[float, Field(ge=0.0, le=5.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Moment = Literal["early", "middle", "late"]


class Newcomers(Spec):
    """Experts added to a running model: the last `experts` of each layer, `popularity` times as popular as an old one
    (a fresh router row wins few tokens at first)."""

    experts: int = Field(strict=True, ge=1, le=1 << 16)
    popularity: float = Field(ge=0.0, le=100.0)


class Tenants(Spec):
    """Experts pinned to users: each of `count` tenants owns `experts` of each layer, which its own sequences alone
    may choose, `preference` times as readily as an equally popular shared one."""

    count: int = Field(strict=True, ge=1, le=1 << 16)
    experts: int = Field(strict=True, ge=1, le=1 << 16)
    preference: float = Field(default=1.0, gt=0.0, le=1000.0)


class Balancing(Spec):
    """What training does to the popularity of experts in `steps` steps (laws: `moesim.routing.balancing`).

    `growth`: how fast what is chosen more wins more; against it stand, with strength `rate`, an `auxiliary-loss`, a
    `z-loss`, a `bias-update` (auxiliary-loss-free), or `none`: collapse.
    """

    kind: Literal["none", "auxiliary-loss", "z-loss", "bias-update"]
    rate: float = Field(default=0.0, ge=0.0, le=100.0)
    growth: float = Field(default=0.0, ge=0.0, le=100.0)
    steps: int = Field(strict=True, ge=0, le=100_000)


class LoadProfile(SourcedSpec):
    """A named statement of how uneven the router's choices are: by a simple law, by a fitted one, or by a trace.

    Popularity of experts in a layer: `zipf` (the weight of the expert of rank r is r^-zipf, ranks shuffled by layer)
    or `log_normal` (standard deviation of the log weight); one value for all layers, or a (low, high) range over which
    layers are spread evenly. `sequence_tilt` is the standard deviation of a sequence's own log-normal tilt of every
    weight: its domain. `fitted`: a routing profile's file, or its name in the catalog; `trace`: a trace's file or
    name, replayed as it was recorded; `digest`: the file's content, filled in at loading. `moment` of training, where
    a trace or profile holds several; `mix`: shares of its domains; `blocks`: each microbatch sample comes from one
    domain, in turn, instead of from all of them.
    """

    zipf: Skew | tuple[Skew, Skew] | None = None
    log_normal: Skew | tuple[Skew, Skew] | None = None
    sequence_tilt: float = Field(default=0.0, ge=0.0, le=5.0)
    fitted: str | None = Field(default=None, max_length=4096)
    trace: str | None = Field(default=None, max_length=4096)
    digest: str | None = Field(default=None, max_length=64)
    moment: Moment | None = None
    mix: dict[str, Share] = Field(default_factory=dict, max_length=256)
    blocks: bool = False
    balancing: Balancing | None = None
    newcomers: Newcomers | None = None
    tenants: Tenants | None = None
    domains: tuple[str, ...] = ()
    note: str = ""

    @property
    def law(self) -> tuple[str, ...]:
        """The fields that say how uneven the load is."""
        return ("trace",) if self.trace else ("fitted",) if self.fitted else ("zipf", "log_normal", "sequence_tilt")

    @model_validator(mode="after")
    def _one_law(self) -> LoadProfile:
        given = [name for name in ("zipf", "log_normal", "fitted", "trace") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"gives {' and '.join(given)}; a load has one law")
        recorded = self.fitted is not None or self.trace is not None
        wrong = [name for name in ("moment", "mix", "blocks") if getattr(self, name) and not recorded]
        if wrong:
            raise ValueError(f"{wrong[0]} needs a load that is fitted or a trace")
        changed = [name for name in ("balancing", "newcomers", "tenants", "sequence_tilt") if getattr(self, name)]
        if recorded and changed:
            raise ValueError(f"{changed[0]} changes a simple law (zipf, log_normal, uniform), not a recorded one")
        if self.mix and sum(self.mix.values()) <= 0.0:
            raise ValueError("the shares of mix add up to nothing")
        return self


class RoutingSpec(Spec):
    """`router` is `model-default`, a router's name, or a name with its parameters."""

    router: str | dict[str, Any] = "model-default"
    load: LoadProfile
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0
    capacity: Literal["dropless"] | CapacitySpec = "dropless"
