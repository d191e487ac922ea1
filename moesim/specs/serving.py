"""What is served, by which engine, and how requests arrive.

An instance is one engine: `gpus` GPUs that hold the model once. An attention replica is one of its data-parallel copies
of attention, each with a KV cache of its own: gpus / (tensor x pipeline) of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import exp, log1p, sqrt
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from moesim.errors import nearest_hint, shorten
from moesim.specs.base import Spec
from moesim.specs.parallelism import Degree
from moesim.specs.workload import ComputeFormat, Count, WireFormat
from moesim.units import Seconds

ServingKind = Literal["prefill", "decode", "serving"]
Phase = Literal["prefill", "decode", "mixed"]
WeightFormat = Literal["auto", "bf16", "fp8", "fp8-block", "mxfp4", "nvfp4", "int8", "int4"]
KvFormat = Literal["auto", "bf16", "fp8"]
_LONGEST = 1 << 24
TokenCount = Annotated[float, Field(ge=1.0, le=_LONGEST)]


class InstanceSpec(Spec):
    """How one engine lays the model over its `gpus` GPUs. Attention: `tensor` x `pipeline` GPUs a replica, and
    `attention_data_parallel` replicas (auto: what the GPUs leave). Experts: each stage's GPUs are `expert` x
    `expert_tensor` ranks (auto: what the GPUs leave)."""

    gpus: Degree
    tensor: Degree = 1
    pipeline: Degree = 1
    expert: Degree = 1
    expert_tensor: Degree | Literal["auto"] = "auto"
    attention_data_parallel: Degree | Literal["auto"] = "auto"

    @property
    def replicas(self) -> int:
        """Attention replicas, `auto` resolved."""
        if self.attention_data_parallel != "auto":
            return self.attention_data_parallel
        return max(1, self.gpus // (self.tensor * self.pipeline))

    @property
    def expert_split(self) -> int:
        """GPUs that share each expert, `auto` resolved."""
        if self.expert_tensor != "auto":
            return self.expert_tensor
        return max(1, self.gpus // (self.pipeline * self.expert))

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage."""
        return max(1, self.gpus // self.pipeline)


class PoolSpec(InstanceSpec):
    """`instances` engines that are alike."""

    instances: Count = 1


class DisaggregatedSpec(Spec):
    """Prompts on some engines, output tokens on others; the KV cache of a prompt moves between them."""

    prefill: PoolSpec
    decode: PoolSpec


class LengthsSpec(Spec):
    """How many tokens: `mean`, log-normal with standard `deviation` where one is given; or uniform, `low` to `high`.

    A plain number stands for its mean.
    """

    mean: TokenCount | None = None
    deviation: float = Field(default=0.0, ge=0.0, le=_LONGEST)
    low: TokenCount | None = None
    high: TokenCount | None = None

    @model_validator(mode="after")
    def _one_law(self) -> LengthsSpec:
        uniform = self.low is not None or self.high is not None
        if uniform == (self.mean is not None) or (uniform and self.deviation):
            raise ValueError("give a number, {mean, deviation}, or {low, high}")
        if uniform and (self.low is None or self.high is None or self.low > self.high):
            raise ValueError("a uniform length needs low and high, low at most high")
        return self

    @property
    def average(self) -> float:
        """Mean tokens."""
        if self.mean is not None:
            return self.mean
        return ((self.low or 0.0) + (self.high or 0.0)) / 2

    @property
    def variance(self) -> float:
        """Variance of the tokens."""
        if self.mean is not None:
            return self.deviation**2
        return ((self.high or 0.0) - (self.low or 0.0)) ** 2 / 12

    @property
    def log_normal(self) -> tuple[float, float]:
        """(location, scale) of the log-normal law that has this mean and deviation."""
        spread = log1p(self.variance / self.average**2)
        return _log(self.average) - spread / 2, sqrt(spread)

    def longest(self, deviations: float = 3.0) -> float:
        """Tokens that hardly any request exceeds: the upper end, or so many standard deviations up."""
        if self.high is not None:
            return self.high
        location, scale = self.log_normal
        return exp(location + deviations * scale)


def _log(value: float) -> float:
    return log1p(value - 1.0)


def _lengths(value: Any) -> Any:
    """A plain number is its own mean; so is text of one, as YAML has 1e3."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"mean": value}
    if isinstance(value, str):
        with suppress(ValueError):
            return {"mean": float(value)}
    if not isinstance(value, (Mapping, LengthsSpec)):
        raise ValueError(  # noqa: TRY004 - pydantic takes no other for a mistake in the input
            f"expected a number, {{mean, deviation}}, or {{low, high}}, got {shorten(value)!r}"
        )
    return value


Lengths = Annotated[LengthsSpec, BeforeValidator(_lengths)]

_NEEDS = {"poisson": ("rate",), "bursty": ("rate", "burstiness"), "closed": ("concurrency",), "trace": ("path",)}


class ArrivalsSpec(Spec):
    """When requests come to the whole deployment.

    `poisson`: `rate` requests a second; `bursty`: gaps of a gamma law whose squared coefficient of variation is
    `burstiness` (1 is Poisson); `closed`: `concurrency` requests are always there, the next comes when one ends;
    `trace`: a file (CSV, Parquet or JSON lines) with the columns timestamp, input_tokens, output_tokens; `digest` of
    its content is filled in at loading.
    """

    kind: Literal["poisson", "bursty", "closed", "trace"]
    rate: Annotated[float, Field(gt=0.0, le=1e7)] | None = None
    burstiness: Annotated[float, Field(gt=0.0, le=1e4)] | None = None
    concurrency: Count | None = None
    path: str | None = Field(default=None, max_length=4096)
    digest: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ArrivalsSpec:
        needs = _NEEDS[self.kind]
        missing = [name for name in needs if getattr(self, name) is None]
        given = [name for name in ("rate", "burstiness", "concurrency", "path") if getattr(self, name) is not None]
        beyond = [name for name in given if name not in needs]
        if missing:
            raise ValueError(f"{self.kind} arrivals need {' and '.join(missing)}{_example(self.kind)}")
        if beyond:
            kinds = ", ".join(kind for kind, names in _NEEDS.items() if beyond[0] in names)
            raise ValueError(f"{beyond[0]} is for {kinds} arrivals, these are {self.kind}")
        return self


def _example(kind: str) -> str:
    return {
        "poisson": ", e.g. {kind: poisson, rate: 20}",
        "bursty": ", e.g. {kind: bursty, rate: 20, burstiness: 4}",
        "closed": ", e.g. {kind: closed, concurrency: 256}",
        "trace": ", e.g. {kind: trace, path: requests.csv}",
    }[kind]


class LimitsSpec(Spec):
    """What a request has to keep to count as good; also what a plan searches under."""

    time_to_first_token: Seconds | None = None
    time_per_output_token: Seconds | None = None
    request_latency: Seconds | None = None

    @property
    def stated(self) -> dict[str, float]:
        """Limits that are given, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


class ServingWorkload(Spec):
    """`requests` requests. `prefill`: prompts only, one output token each; `decode`: the prompts are in the cache
    already; `serving`: both. `prefix_cache_share`: share of prompt tokens that are in the cache already."""

    kind: ServingKind
    requests: Count = 1000
    input_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    arrivals: ArrivalsSpec
    prefix_cache_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    limits: LimitsSpec = LimitsSpec()

    @property
    def in_step(self) -> bool:
        """Whether the requests of a loop have equally many output tokens, so that they end together."""
        return bool(self.arrivals.concurrency and self.output_tokens is not None and not self.output_tokens.variance)


class EngineSpec(Spec):
    """What the serving engine is told.

    Of each attention replica, an iteration computes up to `token_budget` tokens and works on up to `max_requests`
    requests. `chunked_prefill`: a prompt may be computed in parts, beside requests that decode; else whole prompts go
    in iterations of their own. `kv_cache_fraction`: share of the GPU's memory that weights, buffers and KV cache may
    take together. `kv_format` auto: bf16. `speculative_tokens`: output tokens that a decoding request gains in an
    iteration, on average; `drafted_tokens`: positions computed beside its own for that (auto: enough for the gain);
    `draft_cost`: time in which a model without a multi-token-prediction layer of its own has one of them drafted, as a
    share of its own decode iteration's kernels (the cost coefficient of Leviathan et al. 2023, arXiv 2211.17192, table
    4: 0.11 and less); left out unless stated.
    `two_batch_overlap`: a batch is worked in two halves, exchanges of one beside the compute of the other.
    `request_router`: which instance a request goes to: the one with fewest tokens outstanding, or each in turn.
    """

    token_budget: Count = 8192
    max_requests: Count = 256
    chunked_prefill: bool = True
    kv_cache_fraction: float = Field(default=0.9, gt=0.0, le=1.0)
    kv_format: KvFormat = "auto"
    two_batch_overlap: bool = False
    speculative_tokens: float = Field(default=1.0, ge=1.0, le=64.0)
    drafted_tokens: Annotated[int, Field(strict=True, ge=0, le=64)] | Literal["auto"] = "auto"
    draft_cost: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    cuda_graphs: bool = True
    request_router: Literal["least-loaded", "round-robin"] = "least-loaded"

    @property
    def drafted(self) -> int:
        """Positions computed beside a decoding request's own, `auto` resolved."""
        if self.drafted_tokens != "auto":
            return self.drafted_tokens
        return -int(-self.speculative_tokens // 1) - 1

    @model_validator(mode="after")
    def _drafts_enough(self) -> EngineSpec:
        if self.speculative_tokens > self.drafted + 1:
            raise ValueError(
                f"speculative_tokens {self.speculative_tokens:g} are more than drafted_tokens {self.drafted} + 1"
            )
        return self


class ServingPrecision(Spec):
    """Number formats: of the matrix products; of the experts' products and weights where they differ (auto: as
    `compute`; `weights` auto: as the experts' products); of tokens on the wire."""

    compute: ComputeFormat = "bf16"
    experts: ComputeFormat | Literal["auto"] = "auto"
    expert_weights: WeightFormat = "auto"
    dispatch: WireFormat = "bf16"
    combine: WireFormat = "bf16"

    @property
    def expert_compute(self) -> ComputeFormat:
        """Format of the experts' products, `auto` resolved."""
        return self.compute if self.experts == "auto" else self.experts


class ServingDispatcherSpec(Spec):
    """The library that moves tokens to experts and back, by phase; `auto`: kernels for throughput in prefill, for low
    latency in decode, where they run."""

    prefill: str = "auto"
    decode: str = "auto"
    multiprocessors: int | None = Field(strict=True, default=None, ge=1, le=1024)


class ServingSimulationSpec(Spec):
    """How the simulation is run."""

    seed: int = Field(strict=True, default=0, ge=0, le=2**63 - 1)


KINDS: tuple[str, ...] = ("training", "prefill", "decode", "serving")


def unknown_kind(kind: object) -> str:
    """What is wrong with a workload's kind."""
    return f"{kind!r} is not known{nearest_hint(str(kind), KINDS)}"
