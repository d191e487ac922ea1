"""Other tools' measurement files, recognised by their columns and turned into the project's own columns.

A converter takes the file's rows with the index kept and returns columns of `moesim.measurement.columns`; the index
of a row that gives two (dispatch and combine) stands twice. Microseconds and milliseconds become seconds. Tokens stay
those of the whole expert-parallel group for expert layers and those of a rank for exchanges, as both sides count them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from moesim.calibration import names, published

MICRO = 1e-6
MILLI = 1e-3
_ELEMENT = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}


@dataclass(frozen=True)
class Converted:
    """Rows in the project's columns, and how many rows of the file were left out, by reason."""

    rows: pd.DataFrame
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A tool's table: the columns that give it away, those that must not be there, and its converter."""

    name: str
    needs: frozenset[str]
    convert: Callable[[pd.DataFrame], pd.DataFrame]
    lacks: frozenset[str] = frozenset()

    def texts(self, raw: pd.DataFrame) -> frozenset[str]:
        """The columns of text that the converter reads."""
        return TEXTS & frozenset(map(str, raw.columns))


TEXTS = frozenset(
    (
        *("system", "op", "dtype", "lib", "framework", "version", "device", "kernel_source", "allreduce_dtype"),
        *("op_name", "moe_dtype", "distribution", "gemm_dtype", "backend", "ver", "src_file"),
    )
)
"""Columns that hold names; all others that a converter needs hold numbers."""

CUSTOM_ALL_REDUCE = "custom-all-reduce"
"""The library's name of serving frameworks' own all-reduces inside captured graphs."""

_COLLECTIVES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
}


def _nccl(raw: pd.DataFrame) -> pd.DataFrame:
    """nccl-tests: `size_bytes` is the whole buffer also of an all-gather, as bus bandwidth counts it."""
    word = raw["op"].map(_COLLECTIVES).fillna(raw["op"])
    return pd.DataFrame(
        {
            "kind": word.map(lambda name: "all_to_all" if name == "all-to-all" else "collective"),
            "gpu": raw["system"],
            "software": "nccl " + raw["lib"].astype(str),
            "time": raw["time_us"] * MICRO,
            "collective": word,
            "ranks": raw["num_gpus"],
            "ranks_per_domain": raw["num_gpus"] // raw["num_nodes"],
            "bytes": raw["size_bytes"],
            "library": "nccl",
            "dtype": raw["dtype"],
        }
    )


def _serving_all_reduce(raw: pd.DataFrame) -> pd.DataFrame:
    """All-reduce kernels of serving frameworks: milliseconds, and sizes in elements (the largest take twice as long as
    nccl-tests of so many bytes). Eager launches time the host."""
    eager = raw["kernel_source"].str.lower().str.contains("eager")
    return pd.DataFrame(
        {
            "kind": "collective",
            "gpu": raw["device"],
            "software": raw["framework"].str.lower() + " " + raw["version"].astype(str),
            "time": raw["latency"] * MILLI,
            "collective": "all-reduce",
            "ranks": raw["num_gpus"],
            "ranks_per_domain": raw["num_gpus"],
            "bytes": raw["message_size"] * raw["allreduce_dtype"].map(names.dtype).map(_ELEMENT),
            "library": eager.map({True: f"{CUSTOM_ALL_REDUCE} launched eagerly", False: CUSTOM_ALL_REDUCE}),
            "kernel": raw["kernel_source"],
            "dtype": raw["allreduce_dtype"],
        }
    )


def _exchange(raw: pd.DataFrame, way: str, library: str) -> pd.DataFrame:
    """What the two DeepEP tables have in common; tokens are those of a rank, fp8 out and bf16 back."""
    return pd.DataFrame(
        {
            "kind": "dispatch_combine",
            "gpu": raw["system"],
            "software": "sglang " + raw["version"].astype(str),
            "direction": way,
            "tokens": raw["num_token"],
            "hidden": raw["hidden_size"],
            "top_k": raw["num_topk"],
            "experts": raw["num_experts"],
            "ranks": raw["ep_size"],
            "ranks_per_domain": raw["gpus_per_node"],
            "library": library,
            "dispatch": "fp8-block",
            "combine": "bf16",
        }
    )


def _deepep_normal(raw: pd.DataFrame) -> pd.DataFrame:
    """`transmit` is the kernel, `notify` what stands beside it on the stream."""
    both = []
    for way in ("dispatch", "combine"):
        rows = _exchange(raw, way, "deepep-normal")
        rows["sms"] = raw[f"{way}_sms"]
        rows["time"] = raw[f"{way}_transmit_us"] * MICRO
        rows["notify"] = raw[f"{way}_notify_us"] * MICRO
        both.append(rows)
    return pd.concat(both)


def _deepep_low_latency(raw: pd.DataFrame) -> pd.DataFrame:
    both = []
    for way in ("dispatch", "combine"):
        rows = _exchange(raw, way, "deepep-low-latency")
        rows["time"] = raw[f"{way}_avg_t_us"] * MICRO
        both.append(rows)
    return pd.concat(both)


# The low-precision combine is the combine of values in the stated format.
_NVL_PARTS = {
    "alltoall_prepare": "prepare",
    "alltoall_dispatch": "dispatch",
    "alltoall_combine": "combine",
    "alltoall_combine_low_precision": "combine",
}
_NVL = {"NVLinkOneSided": "one-sided-nvl", "NVLinkTwoSided": "two-sided-nvl"}


def _nvl_all_to_all(raw: pd.DataFrame) -> pd.DataFrame:
    """All ranks sit in one NVLink domain; "balanced" spreads every token over as many ranks as it can."""
    low = raw["op_name"] == "alltoall_combine_low_precision"
    dtype = raw["moe_dtype"].map(names.dtype)
    return pd.DataFrame(
        {
            "kind": "dispatch_combine",
            "gpu": raw["system"],
            "software": "trtllm " + raw["version"].astype(str),
            "time": raw["time_us"] * MICRO,
            "direction": raw["op_name"].map(_NVL_PARTS).fillna(raw["op_name"]),
            "tokens": raw["num_tokens"],
            "hidden": raw["hidden_size"],
            "top_k": raw["topk"],
            "experts": raw["num_experts"],
            "ranks": raw["moe_ep_size"],
            "ranks_per_domain": raw["moe_ep_size"],
            "library": raw["kernel_source"].map(_NVL).fillna(raw["kernel_source"]),
            "dispatch": dtype,
            "combine": dtype.where(low, "bf16"),
            "load": raw["distribution"],
        }
    )


def _dense_gemm(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": "gemm",
            "gpu": raw["system"],
            "software": "trtllm " + raw["version"].astype(str),
            "time": raw["time_us"] * MICRO,
            "m": raw["m"],
            "n": raw["n"],
            "k": raw["k"],
            "dtype": raw["gemm_dtype"].map(names.dtype),
            "kernel": raw["kernel_source"],
        }
    )


def _expert_gemm(raw: pd.DataFrame) -> pd.DataFrame:
    """`num_tokens` are those of the whole expert-parallel group; the busiest rank is timed."""
    backend = raw["backend"] if "backend" in raw else raw["kernel_source"]
    version = raw["ver"] if "ver" in raw else raw["version"]
    return pd.DataFrame(
        {
            "kind": "expert_gemm",
            "gpu": raw["system"],
            "software": backend + " " + version.astype(str),
            "time": raw["time_us"] * MICRO,
            "tokens": raw["num_tokens"],
            "hidden": raw["hidden_size"],
            "inter": raw["inter_size"],
            "top_k": raw["topk"],
            "experts": raw["num_experts"],
            "expert_parallel": raw["moe_ep_size"],
            "expert_tensor": raw["moe_tp_size"],
            "dtype": raw["moe_dtype"].map(names.dtype),
            "load": raw["distribution"],
            "kernel": raw["kernel_source"],
        }
    )


def _wide_expert_gemm(raw: pd.DataFrame) -> pd.DataFrame:
    """Wide expert parallelism: `slots` counts redundant experts, `rank_tokens` what the timed rank was given."""
    rows = _expert_gemm(raw)
    rows["what"] = raw["op_name"]
    rows["slots"] = raw["num_slots"]
    rows["rank_tokens"] = raw["rank0_num_tokens"]
    rows["home_tokens"] = raw["dp_num_tokens"]
    return rows


def _needs(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORMATS: tuple[Format, ...] = (
    Format("nccl-tests table", _needs("system num_gpus num_nodes op dtype size_bytes time_us lib"), _nccl),
    Format(
        "serving all-reduce table",
        _needs("framework version device kernel_source allreduce_dtype num_gpus message_size latency"),
        _serving_all_reduce,
    ),
    Format(
        "DeepEP normal table",
        _needs(
            "system version hidden_size num_token num_topk num_experts ep_size gpus_per_node dispatch_sms combine_sms "
            "dispatch_transmit_us dispatch_notify_us combine_transmit_us combine_notify_us"
        ),
        _deepep_normal,
    ),
    Format(
        "DeepEP low-latency table",
        _needs(
            "system version hidden_size num_token num_topk num_experts ep_size gpus_per_node dispatch_avg_t_us "
            "combine_avg_t_us"
        ),
        _deepep_low_latency,
    ),
    Format(
        "NVLink all-to-all table",
        _needs(
            "system version op_name kernel_source moe_dtype num_tokens hidden_size topk num_experts moe_ep_size "
            "distribution time_us"
        ),
        _nvl_all_to_all,
        lacks=frozenset({"inter_size"}),
    ),
    Format("dense GEMM table", _needs("system version kernel_source gemm_dtype m n k time_us"), _dense_gemm),
    Format(
        "wide expert-parallel table",
        _needs(
            "system version op_name kernel_source moe_dtype num_tokens hidden_size inter_size topk num_experts "
            "moe_tp_size moe_ep_size distribution num_slots rank0_num_tokens dp_num_tokens time_us"
        ),
        _wide_expert_gemm,
    ),
    Format(
        "expert GEMM table",
        _needs(
            "system backend ver kernel_source moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size "
            "moe_ep_size distribution time_us"
        ),
        _expert_gemm,
    ),
)

DUPLICATE = "marked as duplicates of other rows"


def convert(raw: pd.DataFrame, table: Format) -> Converted:
    """`raw` in the project's columns, duplicates dropped."""
    left_out = {}
    if "duplicate_of" in raw:
        copies = raw["duplicate_of"].notna()
        left_out = {DUPLICATE: int(copies.sum())} if copies.any() else {}
        raw = raw[~copies]
    rows = table.convert(raw)
    if "src_file" in raw:
        rows["source"] = raw["src_file"].loc[rows.index].to_numpy() if rows.index.is_unique else _aligned(raw, rows)
    return Converted(rows, left_out)


def _aligned(raw: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    return rows.index.to_series().map(raw["src_file"])


def convert_published(raw: pd.DataFrame) -> Converted:
    """The published tables: long, one metric a row."""
    rows, left_out = published.convert(raw)
    return Converted(rows, left_out)
