"""How a model is laid over the GPUs, and in which order a stage works."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moesim.specs.base import Spec

Degree = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
DataSharding = Literal["none", "optimizer", "gradients", "full"]
ScheduleKind = Literal[
    "auto", "gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zero-bubble-h1", "zero-bubble-v", "dualpipe"
]


class ParallelismSpec(Spec):
    """The degrees of each kind of parallelism. `data` counts replicas of the attention part: gpus / (tensor x pipeline
    x context); experts are split over `expert` x `expert_tensor` ranks drawn from the tensor, context and data ranks
    of one pipeline stage, and replicated over what remains."""

    tensor: Degree = 1
    pipeline: Degree = 1
    virtual_pipeline: Degree = 1
    expert: Degree = 1
    expert_tensor: Degree = 1
    context: Degree = 1
    data: Degree | Literal["auto"] = "auto"
    data_sharding: DataSharding = "optimizer"
    sequence_parallel: bool = True


class ScheduleSpec(Spec):
    """The pipeline schedule; `auto` is interleaved-1f1b where virtual_pipeline > 1, else 1f1b; `zero-bubble` is
    zero-bubble-h1. zero-bubble-v gives every pipeline rank two chunks, whether virtual_pipeline says so or not."""

    kind: ScheduleKind = "auto"


class OverlapSpec(Spec):
    """Which communication may run beside compute, and what that costs the compute.

    `expert_communication`: dispatch and combine beside the other microbatch of a forward-backward pair. `two_batch`:
    in schedules without pairs a microbatch is worked in two halves, each exchange beside the other half's compute.
    `shared_experts`: shared experts (or the dense layer beside experts) beside dispatch and combine.
    `weight_gradients`: within the backward operations, or delayed until an exchange runs beside them.
    `data_parallel`: gradient reduction beside the last backward, parameter gathering beside the first forward (under
    full sharding: both beside every slot; sharded gradients: reduction beside every backward). `pipeline`: messages
    between pipeline ranks beside compute. `tensor_parallel`: tensor-parallel collectives beside the products they
    belong to; `stack_options.user_buffers` says the same, and unless either is stated it is so.
    `interference`: exchanges take SMs and memory bandwidth from compute `beside` them; their SMs are `reserved`, which
    keeps them from compute throughout the step (kernels of a fixed size, as DeepSeek-V3's); or `none`, a free lunch.
    """

    expert_communication: bool = False
    two_batch: bool = False
    shared_experts: bool = False
    weight_gradients: Literal["with-backward", "delayed"] = "with-backward"
    data_parallel: bool = True
    pipeline: bool = True
    tensor_parallel: bool | None = None
    interference: Literal["beside", "reserved", "none"] = "reserved"
