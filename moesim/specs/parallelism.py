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
    """Which communication may run beside compute. Tensor-parallel overlap is `stack_options.user_buffers`."""

    expert_communication: bool = False
    data_parallel: bool = True
    tensor_parallel: Literal[False] = False
