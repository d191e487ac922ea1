"""Every column of a plan's table of candidates: unit, meaning, type."""

from __future__ import annotations

from moesim.columns import Column

CANDIDATES: dict[str, Column] = {
    "model": Column("", "model", "str"),
    "gpu": Column("", "GPU", "str"),
    "gpus": Column("", "GPUs of the cluster", "int64"),
    "fabric": Column("", "scale-out fabric", "str"),
    "tensor": Column("", "parallelism.tensor", "int64"),
    "pipeline": Column("", "parallelism.pipeline", "int64"),
    "virtual_pipeline": Column("", "parallelism.virtual_pipeline", "int64"),
    "expert": Column("", "parallelism.expert", "int64"),
    "expert_tensor": Column("", "parallelism.expert_tensor", "int64"),
    "context": Column("", "parallelism.context", "int64"),
    "micro_batch": Column("", "workload.micro_batch", "int64"),
    "recompute": Column("", "recompute; modules joined by +", "str"),
    "schedule": Column("", "schedule.kind, as searched", "str"),
    "capacity": Column("", "routing.capacity.factor; 0: dropless"),
    "dispatcher": Column("", "dispatcher.kind", "str"),
    "overlap": Column("", "overlap.expert_communication", "bool"),
    "step_time": Column("s", "a step, by the screening's closed form"),
    "exposed_communication_time": Column("s", "the part of it that waits for communication"),
    "pipeline_bubble_time": Column("s", "the part of it that waits for another pipeline rank"),
    "memory_per_gpu": Column("B", "memory of the fullest GPU"),
    "fits_in_memory": Column("ratio", "that over the GPU's memory"),
    "dropped_token_fraction": Column("fraction", "routed copies that are dropped"),
    "training_time": Column("s", "time to train on workload.total_tokens, without failures"),
    "cost": Column("", "dollars by the plan's prices, or GPU-hours where there are none"),
    "bound_by": Column("", "the limit that binds; empty where all are kept", "str"),
    "pareto": Column("", "on the Pareto front of time, cost, memory and drops", "bool"),
    "estimated_step_time": Column("s", "a step by `moesim estimate`, where it was asked"),
    "simulated_step_time": Column("s", "a step by the simulation, where it was asked"),
}
