"""Published tables, one metric a row, turned into timed operations by each publisher's own way of counting.

DeepEP and its like state a bandwidth: over NVLink in one domain it counts the bytes of all distinct (token, rank)
pairs that a rank receives, its own included; over the NIC all distinct (token, domain) pairs, the own domain included.
A token copy counts its values and scales (fp8: one scale of 4 bytes for 128 values). Where a latency stands beside the
bandwidth the latency is taken. Ratios of bus bandwidth are over what one NIC a GPU of the nominal rate would carry.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from moesim.calibration import names
from moesim.routing.expected import distinct_places

COLUMNS = frozenset(
    (
        *("kind", "gpu", "num_gpus", "num_nodes", "op_or_model", "variant", "dtype", "bytes", "tokens_per_rank"),
        *("hidden", "topk", "num_experts", "distribution", "sms", "metric", "value", "unit", "source_loc"),
    )
)
NUMBERS = frozenset(
    ("num_gpus", "num_nodes", "bytes", "tokens_per_rank", "hidden", "topk", "num_experts", "sms", "value")
)
"""The columns that hold numbers."""

_SHAPE = re.compile(r"groups=(\d+) M=(\d{1,9}) N=(\d{1,9}) K=(\d{1,9})\Z")
_MOST = 1 << 20
_GIGA, _MICRO = 1e9, 1e-6
# Values and scales of one token copy over its width, as the publishers count them.
_COUNTED = {"fp8-block": 1 + 4 / 128, "bf16": 2.0}
# The publisher of the ratios does not name the GPU; its nominal rates are those of a node with 8 NICs of 400 Gb/s.
_RATIO_SYSTEM: dict[str, Any] = {"gpu": "h100-sxm", "nic": 400e9 / 8}

_OTHER_UNIT = "the same time in another unit"
_NO_GROUP = "not of whole domains of equal size"
_UNCOUNTED = "a bandwidth whose bytes cannot be counted: tokens, experts, choices, width, format or value"
_Row = dict[Any, Any]


def convert(raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows in the project's columns, and the number left out by reason."""
    timed = _timed(raw)
    rows, index, left_out = [], [], dict[str, int]()
    for at, row in zip(raw.index, raw.to_dict(orient="records"), strict=True):
        found = _READERS[row["kind"]](row, timed) if row["kind"] in _READERS else f"of kind {row['kind']}"
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
            continue
        rows.append({"source": row["source_loc"], **found})
        index.append(at)
    return pd.DataFrame(rows, index=index), left_out


def _key(row: _Row) -> tuple[Any, ...]:
    """What a row is about, its metric apart."""
    words = ("kind", "gpu", "num_gpus", "num_nodes", "op_or_model", "variant", "dtype", "tokens_per_rank", "sms")
    return tuple(str(row[word]) for word in words)


def _timed(raw: pd.DataFrame) -> set[tuple[Any, ...]]:
    """Keys of what has a latency of its own."""
    return {_key(row) for row in raw[raw["metric"] == "latency"].to_dict(orient="records")}


def _exchange(row: _Row, timed: set[tuple[Any, ...]]) -> _Row | str:
    if row["metric"] != "latency" and _key(row) in timed:
        return _OTHER_UNIT
    variant, dtype = str(row["variant"]).lower(), names.dtype(str(row["dtype"]))
    dtype = "fp8-block" if dtype == "fp8" else dtype
    ranks, domains = _group(row)
    if not ranks:
        return _NO_GROUP
    groups = {"groups": 8, "top_groups": 4} if "group-limited" in str(row["distribution"]) else {}
    found = {
        "kind": "dispatch_combine",
        "gpu": row["gpu"],
        "software": row["variant"],
        "direction": row["op_or_model"],
        "tokens": row["tokens_per_rank"],
        "hidden": row["hidden"],
        "top_k": row["topk"],
        "experts": row["num_experts"],
        "ranks": ranks,
        "ranks_per_domain": ranks // domains,
        "sms": row["sms"],
        "library": _library(variant),
        "dispatch": dtype if row["op_or_model"] == "dispatch" else "fp8-block",
        "combine": "bf16",
        **groups,
    }
    if row["metric"] == "latency":
        return {**found, "time": row["value"] * _MICRO}
    if not _countable(found, dtype) or not row["value"] > 0:
        return _UNCOUNTED
    return {**found, "time": _counted(found, dtype) / (row["value"] * _GIGA)}


def _group(row: _Row) -> tuple[int, int]:
    """GPUs and nodes; (0, 0) where they are no whole numbers that go into each other."""
    ranks, domains = row["num_gpus"], row["num_nodes"]
    sound = 1 <= domains <= ranks <= _MOST and ranks % 1 == domains % 1 == ranks % domains == 0
    return (int(ranks), int(domains)) if sound else (0, 0)


def _countable(found: _Row, dtype: str) -> bool:
    """Whether the bytes that a rank receives follow from a row."""
    most = {"experts": 65534, "top_k": 512, "hidden": _MOST}
    if not all(1 <= found[name] <= limit and found[name] % 1 == 0 for name, limit in most.items()):
        return False
    share = found["top_groups"] / found["groups"] if "groups" in found else 1.0
    even = found["experts"] % found.get("groups", 1) == 0
    return even and found["top_k"] <= found["experts"] * share and dtype in _COUNTED and found["tokens"] > 0


def _library(variant: str) -> str:
    """The library and its mode; figures of a whole call from torch are not those of the kernel alone."""
    if "hybridep" in variant:
        return "hybrid-ep" if "kernel" in variant else "hybrid-ep torch"
    if "uccl" in variant:
        return "uccl-ep low-latency" if "low-latency" in variant else "uccl-ep"
    if "pure rdma" in variant:
        return "deepep-low-latency pure RDMA"
    if "torch_api" in variant:
        return "deepep-normal torch"
    return "deepep-low-latency" if "low-latency" in variant else "deepep-normal"


def _counted(found: _Row, dtype: str) -> float:
    """Bytes that the publisher divides by the time."""
    domains = found["ranks"] // found["ranks_per_domain"]
    places = domains if domains > 1 else found["ranks"]
    limits = (found["groups"], found["top_groups"]) if "groups" in found else (1, 1)
    copies = distinct_places(places, int(found["experts"]), int(found["top_k"]), *limits)
    return float(found["tokens"] * copies * found["hidden"] * _COUNTED[dtype])


def _ratio(row: _Row, timed: set[tuple[Any, ...]]) -> _Row | str:
    """Ratios to the nominal rate: NICs of the whole node for a ring, one NIC a GPU for an all-to-all."""
    ranks, domains = _group(row)
    if not ranks or not row["value"] > 0:
        return _NO_GROUP if not ranks else "a ratio that is not above 0"
    if domains == 1:
        return "a ratio to an NVLink rate that is not stated"
    domain, size, nic = ranks // domains, float(row["bytes"]), float(_RATIO_SYSTEM["nic"])
    ring = "ring" in row["op_or_model"]
    wire = size * (ranks - 1) / ranks / (nic * domain) if ring else size * (ranks - domain) / ranks / nic
    return {
        "kind": "collective" if ring else "all_to_all",
        "collective": "reduce-scatter" if ring else "all-to-all",
        "software": "nccl, release not stated",
        "time": wire / row["value"],
        "ranks": ranks,
        "ranks_per_domain": domain,
        "bytes": size,
        "library": "nccl",
        "note": "GPU and NIC not stated: taken for H100 with 400 Gb/s",
        **_RATIO_SYSTEM,
    }


def _gemm(row: _Row, timed: set[tuple[Any, ...]]) -> _Row | str:
    if row["metric"] != "derived_time":
        return _OTHER_UNIT
    shape = _SHAPE.search(str(row["op_or_model"]))
    if shape is None:
        return "a GEMM without its shape"
    return {
        "kind": "gemm",
        "gpu": row["gpu"],
        "software": row["variant"],
        "time": row["value"] * _MICRO,
        "m": int(shape[2]),
        "n": int(shape[3]),
        "k": int(shape[4]),
        "dtype": names.dtype(str(row["dtype"])),
        "kernel": "deepgemm",
    }


def _grouped(row: _Row, timed: set[tuple[Any, ...]]) -> str:
    return "a grouped GEMM by itself, which no law takes"


def _messages(row: _Row, timed: set[tuple[Any, ...]]) -> str:
    return "a rate of single RDMA messages, which no law takes"


_READERS: dict[str, Callable[[_Row, set[tuple[Any, ...]]], _Row | str]] = {
    "ep_all2all": _exchange,
    "busbw_efficiency": _ratio,
    "rdma_all2all": _messages,
    "dense_gemm": _gemm,
    "grouped_gemm_contiguous": _grouped,
    "grouped_gemm_masked": _grouped,
}
