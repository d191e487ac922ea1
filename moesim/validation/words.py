"""What people call things: GPUs, collectives and keys, in the words of the catalog.

Only spellings of one and the same thing are here; another thing is never taken for it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from moesim import catalog
from moesim.columns import SUMMARY
from moesim.errors import UnknownNameError, UserError, nearest_hint, shorten

# Parts of a device's name that do not tell it from its like.
_NOISE = {"nvidia", "amd", "instinct", "geforce", "google", "tensor", "core", "gpu", "hbm2e", "hbm3", "hbm3e", "oam"}
_GPUS = {
    "a100": "a100-sxm-80g", "a100-sxm": "a100-sxm-80g", "a100-80g": "a100-sxm-80g", "a100-pcie": "a100-pcie-80g",
    "h100": "h100-sxm", "h100-80g": "h100-sxm", "h100-sxm-80g": "h100-sxm", "dgx-h100": "h100-sxm",
    "h100-pcie-80g": "h100-pcie", "h800": "h800-sxm", "h800-80g": "h800-sxm", "h800-sxm-80g": "h800-sxm",
    "h200": "h200-sxm", "h200-141g": "h200-sxm", "h200-sxm-141g": "h200-sxm",
    "h20": "h20-sxm", "h20-96g": "h20-sxm", "b200": "b200-sxm", "dgx-b200": "b200-sxm", "b200-180g": "b200-sxm",
    "b300": "b300-sxm", "dgx-b300": "b300-sxm", "gb200": "gb200-nvl72", "dgx-gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72", "dgx-gb300": "gb300-nvl72", "rtx-pro-6000": "rtx-pro-6000-server",
    "rtx-pro-6000-blackwell": "rtx-pro-6000-server", "rtx-pro-6000-blackwell-server": "rtx-pro-6000-server",
    "rtx-pro-6000-blackwell-server-edition": "rtx-pro-6000-server", "rtx4090": "rtx-4090", "4090": "rtx-4090",
    "jetson-orin-agx": "jetson-orin-agx-64g", "v4": "tpu-v4", "v5e": "tpu-v5e", "v5p": "tpu-v5p",
}  # fmt: skip

_COLLECTIVES = {
    "allgather": "all-gather", "reducescatter": "reduce-scatter", "allreduce": "all-reduce",
    "alltoall": "all-to-all", "alltoallv": "all-to-all", "alltoallunequal": "all-to-all", "a2a": "all-to-all",
    "pointtopoint": "point-to-point", "p2p": "point-to-point", "sendrecv": "point-to-point", "send": "point-to-point",
}  # fmt: skip

_KEYS = {
    "num_tokens": "tokens", "tokens_per_rank": "tokens", "n_tokens": "tokens", "hidden_size": "hidden",
    "hidden_dim": "hidden", "inter_size": "inter", "intermediate": "inter", "intermediate_size": "inter",
    "moe_intermediate_size": "inter", "expert_hidden": "inter", "topk": "top_k", "num_topk": "top_k",
    "num_experts": "experts", "n_experts": "experts", "num_experts_per_tok": "top_k", "ep": "expert_parallel",
    "ep_size": "expert_parallel", "moe_ep_size": "expert_parallel", "expert_parallel_size": "expert_parallel",
    "etp": "expert_tensor", "moe_tp_size": "expert_tensor", "expert_tensor_parallel": "expert_tensor",
    "distribution": "load", "moe_dtype": "dtype", "gemm_dtype": "dtype", "precision": "dtype", "data_type": "dtype",
    "num_gpus": "ranks", "gpus": "ranks", "world_size": "ranks", "num_ranks": "ranks", "size_bytes": "bytes",
    "size": "bytes", "message_size": "bytes", "gpus_per_node": "ranks_per_domain",
    "gpus_per_domain": "ranks_per_domain", "ranks_per_node": "ranks_per_domain", "domain_size": "ranks_per_domain",
    "domain": "ranks_per_domain", "num_nodes": "nodes", "node_num": "nodes", "domains": "nodes",
    "dispatch_sms": "sms", "num_sms": "sms", "multiprocessors": "sms", "nic_bandwidth": "nic",
    "dispatch_dtype": "dispatch", "combine_dtype": "combine", "kernel_source": "kernel", "dispatcher": "library",
    "lib": "library", "version": "release", "library_version": "release",
    "rank0_num_tokens": "presented_tokens", "num_slots": "slots", "vocab": "vocabulary", "vocab_size": "vocabulary",
    "params": "parameters", "num_groups": "groups", "m_per_group": "m", "expected_m": "m",
    "q_heads": "heads", "num_heads": "heads", "n_heads": "heads", "num_kv_heads": "kv_heads",
    "n_kv_heads": "kv_heads", "seq_len": "length", "kv_length": "length", "operation": "collective",
}  # fmt: skip


def plain(name: str) -> str:
    """A name in small letters, its words joined by single dashes."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))


@lru_cache(maxsize=512)
def gpu_name(name: str) -> str:
    """The catalog's name of a GPU; raises `UserError` naming the nearest, which never answers in its place."""
    known = catalog.names("gpus")
    if name in known:
        return name
    words = [re.sub(r"^sxm[2-6]$", "sxm", word) for word in plain(name).split("-") if word not in _NOISE]
    joined = "-".join(re.sub(r"^(\d+)gi?b$", r"\1g", word) for word in words)
    found = joined if joined in known else _GPUS.get(joined)
    if found not in known:
        raise UserError(f"unknown gpu {shorten(name)!r}{nearest_hint(plain(name), known)}")
    return str(found)


def unit_of(metric: str) -> str:
    """The SI unit of a metric that a case measured, e.g. "dropped_token_fraction[1.25]"."""
    name = metric.partition("[")[0]
    if name in SUMMARY:
        return SUMMARY[name].unit
    ends = {"time": "s", "latency": "s", "bandwidth": "B/s", "flops_per_second": "FLOP/s", "fraction": "fraction"}
    return next((unit for end, unit in ends.items() if name.endswith(end)), "ratio")


def format_name(name: str) -> str:
    """A number format without the remarks that tables make on it: "fp8 (1x128 scaled)" is fp8-block."""
    if "x128" in name:
        return "fp8-block"
    return re.sub(r"\s+", "-", re.sub(r"\(.*?\)", "", name).strip().lower())


def collective_name(name: str) -> str:
    """One name of a collective; raises `UnknownNameError`."""
    found = _COLLECTIVES.get(re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nccl")))
    if found is None:
        raise UnknownNameError("collective", name, set(_COLLECTIVES.values()))
    return found


def key_name(key: str, known: set[str]) -> str:
    """The documented key that a key of an `op` stands for; itself where it is none that is known."""
    name = key.strip().lower().replace("-", "_").replace(" ", "_")
    if name in known:
        return name
    found = _KEYS.get(name, name)
    if found == "expert_parallel" and found not in known:
        found = "ranks"
    elif found == "ranks" and found not in known:
        found = "expert_parallel"
    return found if found in known else key


def unknown_key(key: str, known: set[str]) -> str:
    """The complaint about a key that means nothing here."""
    return f"op.{shorten(key)}: unknown key{nearest_hint(key, known)}"
