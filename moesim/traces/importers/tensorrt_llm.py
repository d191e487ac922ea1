"""TensorRT-LLM's expert statistics: a folder with `meta_info.json` and a `rank{r}.safetensors` of each rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.inputs import source_of
from moesim.traces.counts import RouterCounts
from moesim.traces.importers.base import Importer, ImportOptions, Source, model_places
from moesim.traces.importers.json_text import parse_json
from moesim.traces.tensors import read_tensors
from moesim.traces.trace import TraceMeta

_META = "meta_info.json"
_RANK = re.compile(r"rank(\d+)\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,5})")
_MAX_META = 1 << 20


def _recognises(source: Source) -> bool:
    return _META in source.names and any(_RANK.fullmatch(name) for name in source.names)


def _read(source: Source, options: ImportOptions) -> RouterCounts:
    experts, top_k = _model(source.path / _META)
    ranks = [name for name in source.names if (found := _RANK.fullmatch(name)) and _wanted(found, options)]
    totals: dict[tuple[int, int], NDArray[np.int64]] = {}
    for name in ranks:
        for key, counts in read_tensors(source.path / name).arrays.items():
            place = _place(key, counts, experts, source.path / name)
            totals[place] = totals.get(place, 0) + counts.astype(np.int64)
    steps = sorted({step for step, _ in totals})
    layers = sorted({layer for _, layer in totals})
    if not totals or len(totals) != len(steps) * len(layers):
        raise FileError(f"cannot read {source.path}: some iteration lacks a layer, or nothing was counted")
    if options.model_layers is not None and len(options.model_layers) != len(layers):
        raise FileError(
            f"option model_layers names {len(options.model_layers)} layers; {source.path} has {len(layers)}"
        )
    counts = np.array([[totals[step, layer] for layer in layers] for step in steps])
    meta = TraceMeta(
        experts=experts,
        top_k=top_k,
        model_layers=options.model_layers or model_places(layers, source.path),
        domains=(options.domain,),
        model=options.model,
        source=options.source,
        licence=options.licence,
        device=options.device,
        software="TensorRT-LLM",
        note=f"summed over {len(ranks)} ranks",
    )
    return RouterCounts(counts, np.zeros(len(steps), np.int32), np.array(steps, np.int32), meta)


def _wanted(found: re.Match[str], options: ImportOptions) -> bool:
    return options.ranks is None or int(found[1]) in options.ranks


def _model(path: Path) -> tuple[int, int]:
    """Experts of a layer, and choices of a token."""
    try:
        meta = parse_json(source_of(path, _MAX_META).read_bytes(), str(path))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    numbers = [meta.get(name) if isinstance(meta, dict) else None for name in ("num_experts", "num_experts_per_token")]
    if not all(type(number) is int and 1 <= number < 65535 for number in numbers):
        raise FileError(f"cannot read {path}: it does not say num_experts and num_experts_per_token")
    return int(numbers[0] or 0), int(numbers[1] or 0)


def _place(key: str, counts: NDArray[Any], experts: int, path: Path) -> tuple[int, int]:
    """Iteration and layer of a tensor."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise FileError(f"cannot read {path}: tensor {shorten(key)!r} is not named by iteration and layer, as 50_3")
    if counts.shape != (experts,) or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise FileError(f"cannot read {path}: tensor {key} is not {experts} counts")
    return int(found[1]), int(found[2])


TENSORRT_LLM = Importer(
    "tensorrt-llm",
    "TensorRT-LLM expert statistics: a folder with meta_info.json and rank*.safetensors",
    _recognises,
    _read,
)
