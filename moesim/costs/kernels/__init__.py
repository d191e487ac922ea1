"""Compute laws of isolated kernels: pure functions from a GPU and sizes to seconds with basis and range."""

from moesim.costs.kernels.attention import LatentHeads, attention_time, latent_heads
from moesim.costs.kernels.choice import KernelTime
from moesim.costs.kernels.experts import experts_time, grouped_gemm_time
from moesim.costs.kernels.gemm import gemm_efficiency, gemm_time
from moesim.costs.kernels.loads import expert_rows
from moesim.costs.kernels.passes import (
    head_time,
    launch_time,
    memory_bound_time,
    mtp_time,
    optimizer_time,
    pass_bytes,
    router_time,
)

__all__ = [
    "KernelTime",
    "LatentHeads",
    "attention_time",
    "expert_rows",
    "experts_time",
    "gemm_efficiency",
    "gemm_time",
    "grouped_gemm_time",
    "head_time",
    "latent_heads",
    "launch_time",
    "memory_bound_time",
    "mtp_time",
    "optimizer_time",
    "pass_bytes",
    "router_time",
]
