"""Other tools' recordings of routers, one tool a file; a new format is a file here and a line in `IMPORTERS`."""

from __future__ import annotations

import os
from typing import Any

from moesim.errors import FileError, UnknownNameError
from moesim.traces.counts import Recording
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.csv_rows import CSV
from moesim.traces.importers.exflow import EXFLOW
from moesim.traces.importers.hf_router_logits import HF_ROUTER_LOGITS
from moesim.traces.importers.json_text import MAX_TEXT
from moesim.traces.importers.megatron import MEGATRON_REPLAY, MEGATRON_TRACE
from moesim.traces.importers.moe_cap import MOE_CAP
from moesim.traces.importers.npz import NPZ
from moesim.traces.importers.olmoe_counts import OLMOE_COUNTS
from moesim.traces.importers.own import OWN
from moesim.traces.importers.routed_experts import SGLANG_ROUTED, VLLM_ROUTED
from moesim.traces.importers.sglang_counts import SGLANG_PER_PASS, SGLANG_STAT
from moesim.traces.importers.sglang_per_token import SGLANG_PER_TOKEN
from moesim.traces.importers.tensorrt_llm import TENSORRT_LLM
from moesim.traces.importers.vllm_jsonl import VLLM_JSONL

_ALL = (
    OWN,
    SGLANG_STAT,
    SGLANG_PER_PASS,
    SGLANG_PER_TOKEN,
    SGLANG_ROUTED,
    VLLM_ROUTED,
    VLLM_JSONL,
    TENSORRT_LLM,
    MEGATRON_TRACE,
    MEGATRON_REPLAY,
    HF_ROUTER_LOGITS,
    OLMOE_COUNTS,
    MOE_CAP,
    EXFLOW,
    NPZ,
    CSV,
)
IMPORTERS: dict[str, Importer] = {importer.name: importer for importer in _ALL}
_PACKED = {b"\x1f\x8b": "packed by gzip: unpack it first", b"PK": "an archive of other files than arrays"}
_PICKLE_HELP = (
    "it is a pickle, which could run code when it is read, so it is not: load it where it was made and write JSON "
    '({"model/expert_counts/domain": [[counts of layer 0], ...]} is read as olmoe-counts) or .npz'
)


def read(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Recording:  # noqa: A002
    """A recording in any known format: a trace where the file has each token's choices, otherwise counts.

    `format` is a name of `IMPORTERS`, found from the content where it is None; `options` are those of `ImportOptions`.
    Raises `FileError` for a file that is not sound, `UserError` for an option that is wrong or missing.
    """
    if format is not None and format not in IMPORTERS:
        raise UnknownNameError("trace format", format, IMPORTERS)
    chosen = ImportOptions.of(options)
    source = Source(path)
    _refuse_empty_or_pickle(source)
    importer = IMPORTERS[format] if format is not None else recognise(source)
    return importer.read(source, chosen)


def recognise(source: Source) -> Importer:
    """The importer of a file's content; raises `FileError` that names the known formats."""
    _refuse_empty_or_pickle(source)
    found = next((importer for importer in IMPORTERS.values() if importer.recognises(source)), None)
    if found is None:
        raise FileError(
            f"cannot read {source.path}: {_looks_like(source)}; the known formats are {', '.join(IMPORTERS)}"
        )
    return found


def _refuse_empty_or_pickle(source: Source) -> None:
    if source.kind == "empty" or (source.kind == "folder" and not source.names):
        raise FileError(f"cannot read {source.path}: it is empty")
    if source.kind == "pickle":
        raise FileError(f"cannot read {source.path}: {_PICKLE_HELP}")


def _looks_like(source: Source) -> str:
    """What the file is, and the formats nearest to it."""
    near = {
        "folder": ("a folder without a known recording", ("tensorrt-llm", "megatron-trace", "sglang-per-pass")),
        "tensors": ("a file of tensors", ("moesim", "hf-router-logits")),
        "npy": ("a numpy array of another shape or type", ("exflow", "hf-router-logits")),
        "npz": ("a numpy archive", ("npz",)),
        "torch": ("a torch file with other content", ("sglang-stat", "sglang-per-pass", "megatron-replay")),
        "json": ("JSON with other keys, or damaged JSON", ("vllm-jsonl", "sglang-routed-experts", "olmoe-counts")),
        "text": ("text without the columns of a known format", ("csv",)),
    }
    packed = next((what for sign, what in _PACKED.items() if source.head.startswith(sign)), "of no known kind")
    what, nearest = near.get(source.kind, (packed, ()))
    if source.kind == "json" and source.path.stat().st_size > MAX_TEXT:
        what = f"JSON of more than {MAX_TEXT >> 20} MiB, or JSON lines with other keys"
    return f"it is {what}" + (f" (nearest: {', '.join(nearest)})" if nearest else "")


__all__ = ["IMPORTERS", "ImportOptions", "Importer", "Source", "read", "recognise"]
