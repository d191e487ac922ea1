"""Rows of the shared measurement files in the project's columns, and the skip where the files are absent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd
import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "measurements"
GPUS = {"a100_sxm": "a100-sxm-80g", "h100_sxm": "h100-sxm", "b200_sxm": "b200-sxm"}
DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8-block", "nvfp4": "nvfp4"}
SHAPES = {7168: "deepseek-v3", 4096: "mixtral-8x7b", 2048: "qwen3-30b-a3b"}

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared measurement files are not here")


@lru_cache(maxsize=1)
def dense() -> pd.DataFrame:
    raw = pd.read_csv(SHARED / "aic_dense_gemm.csv.gz")
    raw = raw[raw["gemm_dtype"].isin(DTYPES)]
    rows = raw.rename(columns={"kernel_source": "kernel"})[["m", "n", "k", "kernel"]].assign(
        kind="gemm",
        gpu=raw["system"].map(GPUS),
        dtype=raw["gemm_dtype"].map(DTYPES),
        software="trtllm " + raw["version"].astype(str),
        time=raw["time_us"] * 1e-6,
    )
    return rows.reset_index(drop=True)


@lru_cache(maxsize=1)
def experts() -> pd.DataFrame:
    parts = [pd.read_csv(SHARED / f"aic_moe_gemm_{gpu}.csv.gz", dtype={"ver": str}) for gpu in GPUS]
    raw = pd.concat(parts, ignore_index=True)
    raw = raw[raw["moe_dtype"].isin(DTYPES)]
    names = {
        "kernel_source": "kernel",
        "num_tokens": "tokens",
        "hidden_size": "hidden",
        "inter_size": "inter",
        "topk": "top_k",
        "num_experts": "experts",
        "moe_ep_size": "expert_parallel",
        "moe_tp_size": "expert_tensor",
        "distribution": "load",
    }
    rows = raw.rename(columns=names)[list(names.values())].assign(
        kind="expert_gemm",
        gpu=raw["system"].map(GPUS),
        dtype=raw["moe_dtype"].map(DTYPES),
        software=raw["backend"] + " " + raw["ver"],
        time=raw["time_us"] * 1e-6,
    )
    return rows.reset_index(drop=True)


NEWEST = {"a100-sxm-80g": "trtllm 1.0.0", "h100-sxm": "trtllm 1.3.0rc20", "b200-sxm": "trtllm 1.3.0rc20"}
GROUPED = "cutlass|deepgemm|torch_flow$"
CASE = ["hidden", "inter", "tokens", "expert_parallel", "expert_tensor"]


def grouped_rows(gpu: str, dtype: str, shapes: int | None = None) -> pd.DataFrame:
    """Rows of grouped kernels of the newest release, all loads of `shapes` cases drawn by chance."""
    rows = experts()
    rows = rows[(rows["gpu"] == gpu) & (rows["dtype"] == dtype) & (rows["software"] == NEWEST[gpu])]
    rows = rows[rows["kernel"].str.contains(GROUPED)]
    if shapes is not None:
        drawn = rows[CASE].drop_duplicates().sample(frac=1.0, random_state=11).head(shapes)
        rows = rows.merge(drawn, on=CASE)
    return rows.reset_index(drop=True)
