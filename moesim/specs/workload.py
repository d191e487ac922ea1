"""What is run, in which number formats, on which software, and for how much money."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesim.specs.base import Spec
from moesim.units import BytesPerSecond, DollarsPerHour, DollarsPerKilowattHour, Lifetime, Pause, Seconds, Tokens, Watts

Count = Annotated[int, Field(ge=1, le=1 << 32, strict=True)]
ComputeFormat = Literal["bf16", "fp16", "fp8", "fp8-block", "mxfp8", "nvfp4"]
WireFormat = Literal["fp32", "bf16", "fp8", "fp8-block", "mxfp8", "nvfp4"]
PlacementStrategy = Literal["contiguous", "round-robin", "groups", "greedy", "co-activation", "global", "hierarchical"]
ReplicaChoice = Literal["uniform", "nearest", "load-proportional"]
RecomputeModule = Literal["layernorm", "moe_act", "mla_up_proj", "mlp", "core_attn", "moe", "shared_experts"]


class WorkloadSpec(Spec):
    """Training: `global_batch` sequences a step, `micro_batch` sequences a microbatch of one replica."""

    kind: Literal["training"] = "training"
    sequence_length: Annotated[int, Field(ge=1, le=1 << 24, strict=True)] = 4096
    global_batch: Count
    micro_batch: Count = 1
    total_tokens: Tokens | None = None


class PrecisionSpec(Spec):
    """Number formats: of the matrix products, of tokens on the wire, of gradients, and of the optimizer's state."""

    compute: ComputeFormat = "bf16"
    dispatch: WireFormat = "bf16"
    combine: WireFormat = "bf16"
    gradients: Literal["fp32", "bf16"] = "fp32"
    optimizer: Literal["adam", "adam-bf16-moments"] = "adam"


class StackOptions(Spec):
    """What the software stack is told to do."""

    cuda_graphs: Literal["none", "attention", "full"] = "none"
    fused_expert_mlp: bool = False
    user_buffers: bool | None = Field(default=None, description="as overlap.tensor_parallel; true unless stated")
    offload_layers: int = Field(strict=True, default=0, ge=0, le=10000)
    pipeline_layout: tuple[Annotated[int, Field(strict=True, ge=0, le=10000)], ...] | None = Field(
        default=None, description="layers of each virtual stage, first to last, without embedding, head and MTP"
    )


class OffloadSpec(Spec):
    """Experts kept in host memory: a GPU holds `resident` experts of each layer and fetches others over
    `host_bandwidth` when tokens come for them. `keep`: those used last, or the most popular ones for good.

    `prefetch`, in decode and serving: an expert is fetched when the router has asked for it (none), or as soon as the
    layer before leads one to expect that it will (previous-layer). `prefetch_accuracy`: share of the experts so named
    that are then wanted (assumed; one layer ahead four in five and more are reported: arXiv 2312.17238, 2502.12224);
    those named wrongly are fetched in vain until the router has spoken, those not named are fetched late.
    """

    resident: Count
    host_bandwidth: BytesPerSecond
    keep: Literal["recent", "popular"] = "recent"
    prefetch: Literal["none", "previous-layer"] = "none"
    prefetch_accuracy: float = Field(default=0.8, ge=0.0, le=1.0)


class PlacementSpec(Spec):
    """Which rank holds which expert, and which of its replicas a copy of a token goes to.

    `strategy`: experts in order, dealt out, by the router's `groups` within domains, packed by load (`greedy`), by what
    tokens choose together (`co-activation`), or with busy ones replicated wherever that balances best (`global`) or
    within the domain of their group (`hierarchical`). `redundant_experts`: slots a layer of the expert-parallel group
    beyond one an expert. `replica_choice`: all replicas alike, the one nearest to the token's rank, or in proportion to
    what evens out the ranks. `planned_from`: the recording, counts or load profile whose loads decide; the loads that
    the scenario's own routing is expected to have unless stated. `digest`: its file's content, filled in at loading.
    """

    strategy: PlacementStrategy = "contiguous"
    offload: OffloadSpec | None = None
    redundant_experts: Annotated[int, Field(strict=True, ge=0, le=1 << 16)] = 0
    replica_choice: ReplicaChoice = "uniform"
    planned_from: str | None = Field(default=None, min_length=1, max_length=4096)
    digest: str | None = Field(default=None, max_length=64)
    rebalance_every: None = None

    @model_validator(mode="after")
    def _replicas_have_a_strategy(self) -> PlacementSpec:
        if self.redundant_experts and self.strategy in ("groups", "greedy", "co-activation"):
            raise ValueError(
                f"strategy {self.strategy} replicates nothing; redundant_experts go with global, hierarchical,"
                " contiguous or round-robin"
            )
        if self.digest is not None and self.planned_from is None:
            raise ValueError("digest without planned_from")
        return self

    @property
    def in_order(self) -> bool:
        """Whether rank 0 holds the first experts, rank 1 the next, each once."""
        return self.strategy == "contiguous" and not self.redundant_experts


class DispatcherSpec(Spec):
    """The library that moves tokens to experts and back; `auto` is the fastest that runs on the cluster."""

    kind: str = "auto"
    multiprocessors: int | None = Field(
        strict=True, default=None, ge=1, le=1024, description="SMs given to communication"
    )


class PricesSpec(Spec):
    """Prices by the user; the catalog holds none, because they change by vendor and month. And what draws power.

    In steps a GPU draws its rating, which is the most it can; `idle_power_share` of it (assumed) while it writes a
    checkpoint, restarts, waits for a spare host or stands by as one. `host_power`: of a GPU's share of host and
    switches, all the time. `power_usage_effectiveness`: the meter's energy over that of the machines, cooling
    included. What is not stated is not counted, and the answer says so.
    """

    gpu_hour: DollarsPerHour | None = None
    electricity: DollarsPerKilowattHour | None = None
    idle_power_share: float = Field(default=0.15, ge=0.0, le=1.0)
    host_power: Watts | None = None
    power_usage_effectiveness: Annotated[float, Field(ge=1.0, le=5.0)] | None = None


class Straggler(Spec):
    """A slow GPU: its compute takes `slowdown` times as long.

    `gpu`: one of the cluster, by its number; the simulated expert-parallel group is then the one that holds it.
    `rank`: that rank of the simulated group, on every pipeline rank.
    """

    rank: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] | None = None
    gpu: Annotated[int, Field(strict=True, ge=0, le=1 << 24)] | None = None
    slowdown: float = Field(ge=1.0, le=100.0)

    @model_validator(mode="after")
    def _names_one(self) -> Straggler:
        if (self.rank is None) == (self.gpu is None):
            raise ValueError("needs a rank of the simulated group or a gpu of the cluster, and not both")
        return self


class CheckpointSpec(Spec):
    """How a run saves its state. `interval`: training time between two checkpoints, taken at the end of a step; `auto`
    is Daly's optimum. `write`: seconds that training stands still for one, 0 where it is written beside training (auto
    is then every step); `load`: seconds to read one back."""

    interval: Seconds | Literal["auto"] = "auto"
    write: Pause = 60.0
    load: Pause = 120.0


class SparesSpec(Spec):
    """Hosts that stand by for failed ones. A failure takes its host out for `repair` on average; while none stands by,
    training waits. `gpus_per_host` is the cluster's domain unless stated."""

    hosts: int = Field(strict=True, ge=0, le=100_000)
    repair: Seconds
    gpus_per_host: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None


class FailuresSpec(Spec):
    """What interrupts a training run, and what it does about it.

    `mean_time_between_failures`: of one GPU with its share of host, links and software; any failure stops the run.
    `restart`: seconds from a failure until the checkpoint is read: detecting it, replacing the host, launching the job.
    Without `spares` a replacement is always at hand. `horizon`: training time looked at where `workload.total_tokens`
    is absent.
    """

    mean_time_between_failures: Lifetime
    restart: Pause = 600.0
    checkpoint: CheckpointSpec = CheckpointSpec()
    spares: SparesSpec | None = None
    horizon: Seconds = 30 * 86400.0


class SimulationSpec(Spec):
    """How the simulation is run: its seed, detail and disturbances.

    `sampled_tokens`: tokens of a rank and microbatch that are drawn, each standing for equally many of its sequence
    (all unless stated; the noise of sampling then shows larger than it is, a sequence's own skew stays). `jitter`:
    relative standard deviation of every compute operation's time. `network`: the links by their busiest port, by
    flows that share them max-min fairly (gradients beside the last backward too), or each rank's own at full rate.
    """

    seed: int = Field(strict=True, default=0, ge=0, le=2**63 - 1)
    steps: int = Field(strict=True, default=1, ge=1, le=1000)
    microbatch_samples: int = Field(strict=True, default=8, ge=1, le=1024)
    sampled_tokens: int | None = Field(strict=True, default=None, ge=1, le=1 << 30)
    network: Literal["port-load", "max-min", "ideal"] = "port-load"
    jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    stragglers: tuple[Straggler, ...] | None = None
    failures: FailuresSpec | None = None
