"""Every column of a serving plan's table of candidates: unit, meaning, type."""

from __future__ import annotations

from moesim.columns import Column

_POOL = {
    "instances": "engines",
    "instance_gpus": "GPUs of an engine",
    "tensor": "tensor-parallel ranks of its attention",
    "pipeline": "its pipeline stages",
    "expert": "its expert-parallel ranks",
    "expert_tensor": "GPUs that share each expert",
    "attention_data_parallel": "its attention replicas",
}
SERVING_CANDIDATES: dict[str, Column] = {
    "model": Column("", "model", "str"),
    "gpu": Column("", "GPU", "str"),
    "gpus": Column("", "GPUs of the cluster", "int64"),
    "fabric": Column("", "scale-out fabric", "str"),
    "disaggregated": Column("", "whether prompts and outputs have engines of their own", "bool"),
    **{name: Column("", f"{said}; of prefill where disaggregated", "int64") for name, said in _POOL.items()},
    **{f"decode_{name}": Column("", f"{said} that decode", "int64") for name, said in _POOL.items()},
    "redundant_experts": Column("", "placement.redundant_experts", "int64"),
    "token_budget": Column("token", "engine.token_budget, an attention replica and iteration", "int64"),
    "two_batch_overlap": Column("", "engine.two_batch_overlap", "bool"),
    "dispatcher_prefill": Column("", "dispatcher.prefill", "str"),
    "dispatcher_decode": Column("", "dispatcher.decode", "str"),
    "time_to_first_token": Column("s", "mean of the steady state, by the closed form"),
    "time_per_output_token": Column("s", "mean of the steady state, by the closed form"),
    "request_latency": Column("s", "mean of the steady state, by the closed form"),
    "output_tokens_per_second_per_gpu": Column("token/s", "of the GPUs of the cluster, by the closed form"),
    "fits_in_memory": Column("ratio", "weights and buffers over the memory given to an engine"),
    "cost": Column("", "dollars a million output tokens, or GPU-hours where there are no prices"),
    "dollars_per_hour": Column("$/h", "of all GPUs; null where there are no prices"),
    "bound_by": Column("", "the limit that binds; empty where all are kept", "str"),
    "pareto": Column("", "on the Pareto front of cost, both latencies and tokens/s/GPU", "bool"),
    "estimated_time_to_first_token": Column("s", "mean by `moesim estimate`, where it was asked"),
    "estimated_time_per_output_token": Column("s", "mean by `moesim estimate`, where it was asked"),
    "simulated_time_to_first_token": Column("s", "median by the simulation, where it was asked"),
    "simulated_time_per_output_token": Column("s", "median by the simulation, where it was asked"),
}
