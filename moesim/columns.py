"""Every result column once: name, unit, meaning. Tables, parquet metadata, axes, tooltips and the README read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: its SI unit ("" for names and counts) and what it means; `dtype` is numpy's name for it."""

    unit: str
    meaning: str
    dtype: str = "float64"


SUMMARY: dict[str, Column] = {
    "step_time": Column("s", "one optimizer step, begin to end"),
    "tokens_per_second": Column("token/s", "tokens trained a second, whole cluster"),
    "tokens_per_second_per_gpu": Column("token/s", "tokens trained a second and GPU"),
    "model_flops_per_second_per_gpu": Column(
        "FLOP/s", "model FLOPs (no recompute, causal attention halved) a second and GPU"
    ),
    "model_flops_utilization": Column("fraction", "model FLOP/s over the GPU's dense peak in the compute format"),
    "communication_time": Column(
        "s", "time a GPU's communication takes in a step, hidden or not; at least the exposed"
    ),
    "exposed_communication_time": Column("s", "the part of it that compute waits for"),
    "communication_fraction": Column("fraction", "exposed communication over step time"),
    "dispatch_time": Column(
        "s", "all dispatches of a step on one GPU, forward and backward, hidden or not, without waiting for peers"
    ),
    "combine_time": Column(
        "s", "all combines of a step on one GPU, forward and backward, hidden or not, without waiting for peers"
    ),
    "expert_compute_time": Column("s", "routed and shared experts, with permutation"),
    "attention_time": Column("s", "attention blocks: projections, scores, norms"),
    "dense_time": Column("s", "dense feed-forward layers, embedding and head"),
    "router_time": Column("s", "router projections and top-k"),
    "data_parallel_time": Column("s", "gradient reduction and parameter gathering, hidden or not"),
    "tensor_parallel_time": Column("s", "tensor- and context-parallel collectives"),
    "pipeline_bubble_time": Column("s", "time a GPU waits for another pipeline stage"),
    "optimizer_time": Column("s", "optimizer update"),
    "bytes_scale_up_per_gpu": Column("B", "expert-parallel bytes a GPU sends over scale-up links in a step"),
    "bytes_scale_out_per_gpu": Column("B", "expert-parallel bytes a GPU sends over its NIC in a step"),
    "dropped_token_fraction": Column("fraction", "routed token copies beyond expert capacity, dropped"),
    "padded_token_fraction": Column("fraction", "rows computed that hold padding"),
    "expert_load_max_over_mean": Column("ratio", "busiest expert's tokens over the mean, mean over layers and samples"),
    "expert_load_static_max_over_mean": Column(
        "ratio", "the part of it that is the same in every batch: popularity, which placement and replication can mend"
    ),
    "rank_load_max_over_mean": Column(
        "ratio", "busiest expert-parallel rank's rows over the mean, mean over layers and samples"
    ),
    "idle_expert_fraction": Column("fraction", "experts without a token, mean over layers and samples"),
    "balancedness": Column("ratio", "mean over layers of mean/max rank load (SGLang's definition)"),
    "expert_cache_hit_fraction": Column(
        "fraction", "share of a token's experts found in GPU memory, tokens one by one, where experts are off-loaded"
    ),
    "expert_fetch_time_per_token": Column("s", "time to fetch the missing ones over the host link, tokens one by one"),
    "skew_time": Column("s", "step time lost to unequal routing: this step minus the same step under perfect balance"),
    "skew_fraction": Column("fraction", "share of the step that perfectly balanced routing would give back"),
    "bubble_amplification": Column(
        "ratio",
        "skew time over what unequal routing adds to a pipeline rank's own work, without waiting for other pipeline"
        " ranks: 1 without a pipeline",
    ),
    "memory_per_gpu": Column("B", "peak memory of the fullest GPU"),
    "fits_in_memory": Column(
        "ratio", "peak memory over the GPU's memory: up to 0.9 fits, up to 1.15 needs off-load or recompute"
    ),
    "total_parameters": Column("parameter", "parameters of the model"),
    "active_parameters": Column("parameter", "parameters that one token uses"),
    "flops_per_token": Column("FLOP", "model FLOPs a token, forward and backward"),
    "goodput_fraction": Column("fraction", "share of a run's time spent on steps that count, under failures"),
    "time_between_failures": Column("s", "mean time between failures of the whole cluster"),
    "failures": Column("", "failures during the run, mean"),
    "checkpoint_interval": Column("s", "training time between two checkpoints"),
    "useful_time": Column("s", "run time spent on steps that count: the run without failures and checkpoints"),
    "checkpoint_time": Column("s", "run time that training stands still to write checkpoints that are needed"),
    "lost_time": Column("s", "run time undone by failures: steps and writes since the last checkpoint"),
    "restart_time": Column("s", "run time from failures until the checkpoint is read, without waiting for a host"),
    "spare_wait_time": Column("s", "run time spent waiting for a repaired host, no spare standing by"),
    "training_time": Column(
        "s", "time to train on workload.total_tokens, with failures and checkpoints where they are stated"
    ),
    "gpu_hours": Column("GPU-h", "GPU-hours for workload.total_tokens"),
    "cost": Column("$", "GPU-hours x prices.gpu_hour (+ energy x prices.electricity)"),
    "energy": Column("J", "energy for workload.total_tokens: the GPU's rating in steps, its idle share of it else"),
}

OPERATIONS: dict[str, Column] = {
    "step": Column("", "simulated step", "int32"),
    "stage": Column("", "pipeline rank", "int32"),
    "chunk": Column("", "virtual stage: position in the model, 0 first", "int32"),
    "microbatch": Column("", "microbatch; -1 where none", "int32"),
    "layer": Column("", "model layer; -1 where none", "int32"),
    "phase": Column("", "forward, backward, weight, step", "str"),
    "kind": Column("", "attention, router, dispatch, experts, combine, dense, tensor-parallel, ...", "str"),
    "stream": Column("", "compute, communication, point-to-point, data-parallel", "str"),
    "begin": Column("s", "first rank's begin"),
    "end": Column("s", "last rank's end"),
    "begin_mean": Column("s", "begin, mean over ranks"),
    "end_mean": Column("s", "end, mean over ranks"),
    "busy_mean": Column("s", "own work without waiting for peers, mean over ranks"),
    "bytes_up": Column("B", "bytes sent over scale-up links, all ranks of the group"),
    "bytes_out": Column("B", "bytes sent over NICs, all ranks of the group"),
    "rows": Column("", "token copies computed, all ranks of the group"),
    "basis": Column("", "where the duration comes from", "str"),
}

ROUTING: dict[str, Column] = {
    "layer": Column("", "model layer", "int32"),
    "sample": Column("", "routing sample", "int32"),
    "expert": Column("", "expert", "int32"),
    "rank": Column("", "expert-parallel rank that holds it", "int32"),
    "tokens": Column("token", "token copies routed to it by one microbatch of the group", "int64"),
    "kept": Column("token", "of them within capacity", "int64"),
}
