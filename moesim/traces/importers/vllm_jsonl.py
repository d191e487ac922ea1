"""The community's vLLM route loggers (`moe_routes.jsonl`): a line about the run, then a line a token and layer.

The engine's profiling pass is logged too, as tokens that all look alike: they are the first tokens of such a file, and
are left out wherever they occur.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, count_noun
from moesim.traces.importers.lines import (
    Block,
    Rows,
    first_names,
    json_tables,
    lists_to_block,
    put_together,
    run_lengths,
)
from moesim.traces.trace import RouterTrace

_SCHEMA = pa.schema(
    [
        ("req_id", pa.string()),
        ("layer", pa.int32()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_weights", pa.list_(pa.float32())),
    ]
)


def _recognises(source: Source) -> bool:
    row = source.row
    return "topk_ids" in row or (row.get("type") == "meta" and b'"topk_ids"' in source.head)


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    path = source.path
    requests: dict[Any, int] = {}
    parts: list[Rows] = []
    for table in json_tables(path, _SCHEMA):
        parts += _rows(table, requests, source)
    rows = Rows.joined(parts, path)
    names = list(requests)
    block = put_together(
        rows,
        path,
        lambda key: f"request {shorten(repr(names[key]))} has not the same tokens in every layer (cut file?)",
    )
    warm_up = _warm_up(block)
    keep = ~warm_up if warm_up.any() else slice(None)
    removed = int(warm_up.sum()) * len(block.layers)
    notes = []
    if removed:
        share = removed / (rows.key.size or 1)
        notes.append(f"without {count_noun(removed, 'warm-up row')} equal to the first ({share:.0%} of all)")
    if warm_up.all():
        raise FileError(f"cannot read {path}: all of its rows are alike (warm-up)")
    if list(requests) == [None]:
        notes.append("the file names no requests: read as one sequence")
    draft = Draft(
        path=path,
        choices=block.choices[keep],
        lengths=run_lengths(block.key[keep]),
        layers=block.layers,
        weights=None if block.weights is None else block.weights[keep],
        experts=_experts(source),
        software="vLLM",
        notes=notes,
    )
    model = source.row.get("model_id", source.row.get("model", ""))
    named = options.model or (model if isinstance(model, str) else "")
    return build(draft, options.model_copy(update={"model": named}))


def _rows(table: pa.Table, requests: dict[Any, int], source: Source) -> list[Rows]:
    table = table.filter(table.column("topk_ids").is_valid())
    if not table.num_rows:
        return []
    layer = table.column("layer")
    if layer.null_count:
        raise FileError(f"cannot read {source.path}: a row has no layer")
    weights = table.column("topk_weights")
    ids = lists_to_block(table.column("topk_ids"), source.path, np.int32)
    weighed = None if weights.null_count else lists_to_block(weights, source.path, np.float32, 0.0)
    lengths = (pc.list_value_length(table.column(name)) for name in ("topk_ids", "topk_weights"))
    if weighed is not None and not next(lengths).equals(next(lengths)):
        raise FileError(f"cannot read {source.path}: a row has not one weight for each choice")
    return [
        Rows(
            key=first_names(table.column("req_id"), requests),
            layer=layer.to_numpy().astype(np.int64),
            tokens=np.ones(table.num_rows, np.int64),
            ids=ids,
            weights=weighed,
        )
    ]


def _warm_up(block: Block) -> NDArray[np.bool_]:
    """Tokens that equal the first one in every layer, where the second does too [T]."""
    like_first = (block.choices == block.choices[:1]).all(axis=(1, 2))
    if block.weights is not None:
        like_first &= (block.weights == block.weights[:1]).all(axis=(1, 2))
    return like_first if like_first[:2].sum() == 2 else np.zeros_like(like_first)


def _experts(source: Source) -> int | None:
    """The number of experts, where the first line says it."""
    first = source.row
    found = next((first[name] for name in ("num_experts", "n_experts", "experts") if name in first), None)
    return found if type(found) is int and found > 0 else None


VLLM_JSONL = Importer(
    "vllm-jsonl", "a vLLM route logger's moe_routes.jsonl: a line a token and layer", _recognises, _read
)
