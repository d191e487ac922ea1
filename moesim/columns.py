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

SERVING: dict[str, Column] = {
    "time_to_first_token": Column(
        "s", "from a request's arrival to its first output token, median over requests; of an estimate the mean"
    ),
    "time_to_first_token_mean": Column("s", "the same, mean over requests: what both roads tell"),
    "time_to_first_token_p99": Column("s", "the same, 99th percentile"),
    "time_per_output_token": Column(
        "s",
        "time from first to last output token over the tokens after the first, median over requests; of an estimate the"
        " mean",
    ),
    "time_per_output_token_mean": Column("s", "the same, mean over requests: what both roads tell"),
    "time_per_output_token_p99": Column("s", "the same, 99th percentile"),
    "request_latency": Column(
        "s", "from a request's arrival to its last token, median over requests; of an estimate the mean"
    ),
    "request_latency_mean": Column("s", "the same, mean over requests: what both roads tell"),
    "request_latency_p99": Column("s", "the same, 99th percentile"),
    "output_tokens_per_second": Column(
        "token/s", "output tokens a second, the first token of each prompt included, whole deployment"
    ),
    "output_tokens_per_second_per_gpu": Column("token/s", "output tokens a second over all GPUs of the deployment"),
    "input_tokens_per_second": Column("token/s", "prompt tokens a second, cached ones too, whole deployment"),
    "requests_per_second": Column("1/s", "requests that end a second"),
    "goodput_requests_per_second": Column("1/s", "requests a second that keep every limit of workload.limits"),
    "goodput_fraction": Column("fraction", "share of requests that keep every limit of workload.limits"),
    "kv_cache_use": Column(
        "fraction",
        "tokens in the KV cache over its room, mean over the time worked, of the instances that decode (where none"
        " does, of all)",
    ),
    "batch_requests": Column(
        "",
        "requests that decode, held up by prompts or not, and those whose prompts an iteration computes; mean over the"
        " time worked, of an instance that decodes (where none does, of any)",
    ),
    "rank_load_max_over_mean": Column(
        "ratio", "busiest expert-parallel rank's rows over the mean, mean over layers and over time worked"
    ),
    "expert_load_max_over_mean": Column(
        "ratio", "busiest expert's tokens over the mean, mean over layers and over time worked"
    ),
    "communication_fraction": Column("fraction", "share of the iterations' time that compute waits for communication"),
    "expert_cache_hit_fraction": Column(
        "fraction",
        "share of the experts that a decode iteration wants, layer by layer, found in GPU memory, where experts are"
        " off-loaded",
    ),
    "expert_fetch_fraction": Column("fraction", "share of the iterations' time that layers wait for experts to come"),
    "host_memory_per_gpu": Column("B", "experts that stand in host memory for the fullest GPU"),
    "memory_per_gpu": Column("B", "memory taken on the fullest GPU, KV cache at its full room"),
    "fits_in_memory": Column(
        "ratio", "weights and buffers over the memory that engine.kv_cache_fraction gives: the rest is KV cache"
    ),
    "gpu_hours_per_million_output_tokens": Column("GPU-h", "GPU-hours of the whole deployment a million output tokens"),
    "cost_per_million_output_tokens": Column("$", "the same at prices.gpu_hour (+ energy x prices.electricity)"),
}

REQUESTS: dict[str, Column] = {
    "request": Column("", "request, in order of arrival", "int64"),
    "arrival": Column("s", "when it comes"),
    "input_tokens": Column("token", "prompt tokens", "int64"),
    "cached_tokens": Column("token", "of them in the KV cache already", "int64"),
    "output_tokens": Column("token", "output tokens", "int64"),
    "begin": Column("s", "when an engine lets it in: it has a seat and room in the KV cache"),
    "prefill_end": Column("s", "when its prompt is computed"),
    "kv_transfer": Column("s", "from then until its KV cache is at the instance that decodes: waiting and sending"),
    "first_token": Column("s", "first output token"),
    "end": Column("s", "last output token"),
    "prefill_instance": Column("", "instance that computes its prompt; -1 where none", "int32"),
    "decode_instance": Column("", "instance that decodes it; -1 where none", "int32"),
    "time_to_first_token": Column("s", "first_token - arrival"),
    "time_per_output_token": Column("s", "(end - first_token) / (output_tokens - 1); 0 for a single token"),
    "latency": Column("s", "end - arrival"),
    "within_limits": Column("", "1 where it keeps every limit of workload.limits", "int32"),
}

ITERATIONS: dict[str, Column] = {
    "time": Column("s", "begin of the time bin"),
    "seconds": Column("s", "length of the time bin"),
    "instance": Column("", "instance within its pool", "int32"),
    "phase": Column("", "prefill, decode or mixed", "str"),
    "iterations": Column("", "iterations in the bin"),
    "busy_fraction": Column("fraction", "share of the bin spent in iterations"),
    "prefill_tokens": Column("token", "prompt tokens computed in the bin"),
    "output_tokens": Column("token", "output tokens given in the bin"),
    "batch_requests": Column("", "requests in an iteration's batch, mean over the time worked"),
    "waiting_requests": Column("", "requests that wait to be let in, mean over the time worked"),
    "kv_cache_use": Column("fraction", "tokens in the KV cache over its room, mean over the time worked"),
    "kv_cache_reserved": Column("fraction", "tokens reserved in it for requests let in, mean over the time worked"),
    "rank_load_max_over_mean": Column("ratio", "expert-parallel ranks' rows, mean over iterations; 1 where idle"),
    "rank_load_worst": Column("ratio", "the same, worst iteration of the bin"),
    "expert_load_max_over_mean": Column("ratio", "experts' tokens, mean over iterations; 1 where idle"),
    "replica_requests_max_over_mean": Column(
        "ratio", "requests of the attention replicas, mean over the time worked; 1 where idle"
    ),
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
