"""SGLang's expert distribution recorder, modes stat, stat_approx and per_pass, and its initial expert location.

N steps, L layers, P physical experts (copies included), E logical ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError
from moesim.traces.counts import RouterCounts
from moesim.traces.importers.base import Importer, ImportOptions, Source, model_places
from moesim.traces.importers.sglang import array_of_lists, logical_map, recordings, records_of, sample, whole_numbers
from moesim.traces.trace import TraceMeta

_COUNT = "global_physical_count"


def counts_of(
    counts: NDArray[np.int64], step: NDArray[Any], source: Source, options: ImportOptions, notes: list[str]
) -> RouterCounts:
    """Rows and layers that counted something; `counts` [N, L, E]."""
    if counts.min(initial=0) < 0:
        raise FileError(f"cannot read {source.path}: a count is negative")
    used, recorded = counts.any(axis=(1, 2)), counts.any(axis=(0, 2))
    if not used.any():
        raise FileError(f"cannot read {source.path}: it counted nothing")
    if not used.all():
        notes.append(f"without {int((~used).sum()):,} empty rows of the buffer")
    if not recorded.all():
        notes.append(f"without the dense layers {', '.join(map(str, np.flatnonzero(~recorded)))}")
    kept = counts[np.ix_(used, recorded)]
    layers = options.model_layers or model_places(np.flatnonzero(recorded), source.path)
    if len(layers) != kept.shape[1]:
        raise FileError(f"option model_layers names {len(layers)} layers; {source.path} has {kept.shape[1]}")
    meta = TraceMeta(
        experts=kept.shape[2],
        top_k=options.need_top_k(source.path),
        model_layers=layers,
        domains=(options.domain,),
        model=options.model,
        source=options.source,
        licence=options.licence,
        device=options.device,
        software="SGLang",
        note="; ".join(notes),
    )
    return RouterCounts(kept, np.zeros(len(kept), np.int32), step[used].astype(np.int32), meta)


def _stat_recognises(source: Source) -> bool:
    content = source.value if source.kind == "json" else source.torch
    return isinstance(content, dict) and "logical_count" in content


def _read_stat(source: Source, options: ImportOptions) -> RouterCounts:
    content = source.value if source.kind == "json" else source.torch
    if not isinstance(content, dict) or "logical_count" not in content:
        raise FileError(f"cannot read {source.path}: it holds no logical_count")
    where = f"logical_count of {source.path}"
    told = content["logical_count"]
    table = told if isinstance(told, np.ndarray) else array_of_lists(told, where)
    counts = whole_numbers(table, max(2, min(table.ndim, 3)), where)
    counts = counts[None] if counts.ndim == 2 else counts
    return counts_of(counts, np.arange(len(counts)), source, options, [])


def _per_pass_recognises(source: Source) -> bool:
    records = records_of(sample(source))
    return bool(records) and _COUNT in records[0]


def _read_per_pass(source: Source, options: ImportOptions) -> RouterCounts:
    """Counts of one forward pass on all ranks together, copies of an expert together."""
    totals: dict[int, NDArray[np.int64]] = {}
    for content in recordings(source, options):
        place = logical_map(content, source.path)
        experts = int(place.max()) + 1
        for record in records_of(content):
            step = record.get("forward_pass_id")
            if _COUNT not in record or type(step) is not int or not 0 <= step < 1 << 31:
                raise FileError(f"cannot read {source.path}: a record has no {_COUNT} or no sound forward_pass_id")
            physical = whole_numbers(record[_COUNT], 2, f"{_COUNT} of {source.path}")
            if physical.shape != place.shape:
                raise FileError(f"cannot read {source.path}: {_COUNT} is {physical.shape}, its map {place.shape}")
            logical = np.zeros((len(place), experts), np.int64)
            np.add.at(logical, (np.arange(len(place))[:, None], place), physical)
            before = totals.get(step)
            if before is not None and before.shape != logical.shape:
                raise FileError(f"cannot read {source.path}: its ranks differ in layers or experts")
            totals[step] = logical if before is None else before + logical
    if len({total.shape for total in totals.values()}) != 1:
        raise FileError(f"cannot read {source.path}: it has no forward pass, or passes of differing shapes")
    steps = sorted(totals)
    return counts_of(np.array([totals[step] for step in steps]), np.array(steps), source, options, [])


SGLANG_STAT = Importer(
    "sglang-stat",
    "SGLang expert distribution, mode stat or stat_approx (.pt), or an expert location with logical_count (.json)",
    _stat_recognises,
    _read_stat,
)
SGLANG_PER_PASS = Importer(
    "sglang-per-pass",
    "SGLang expert distribution, mode per_pass: one .pt, or a folder with one a rank",
    _per_pass_recognises,
    _read_per_pass,
)
