"""CSV of choices: columns `token`, `layer`, `experts` (names separated by spaces) and optionally `sequence`, or the
two columns of a llama.cpp fork without a heading: layer, "names separated by spaces", tokens in the file's order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from moesim.errors import FileError, nearest_hint, shorten
from moesim.traces.importers.base import HEAD, Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, not_read
from moesim.traces.importers.lines import PIECE, Rows, first_names, lists_to_block, put_together, run_lengths
from moesim.traces.trace import RouterTrace

_NAMED = ("token", "layer", "experts", "sequence")
_BARE = ("layer", "experts")


def _heading(source: Source) -> list[str]:
    line = source.head.partition(b"\n")[0].decode("utf-8", "replace")
    return [name.strip().strip('"').lower() for name in line.split(",")]


def _is_bare(names: list[str]) -> bool:
    """Whether the first line is already a row of two: layer, names."""
    return len(names) == 2 and names[0].isdigit() and all(name.lstrip("-").isdigit() for name in names[1].split())


def _recognises(source: Source) -> bool:
    names = _heading(source)
    return source.kind == "text" and (_is_bare(names) or {"layer", "experts"} <= set(names))


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    names = _heading(source)
    bare = _is_bare(names)
    if not bare and not {"token", "layer", "experts"} <= set(names):
        missing = next(name for name in ("token", "layer", "experts") if name not in names)
        hint = nearest_hint(missing, map(shorten, names))
        raise FileError(f"cannot read {source.path}: its first line has no column {missing}{hint}")
    if not bare and len(source.head) < HEAD - 3 and len(source.head.strip().splitlines()) < 2:
        raise FileError(f"cannot read {source.path}: it has column names and no rows")
    sequences: dict[Any, int] = {}
    parts = [_rows(batch, sequences, source) for batch in _batches(source, _BARE if bare else names)]
    rows = Rows.joined([part for part in parts if part is not None], source.path)
    known = list(sequences)
    block = put_together(
        rows,
        source.path,
        lambda key: f"sequence {shorten(repr(known[key]))} has not the same tokens in every layer (cut file?)",
    )
    notes = [] if bare else not_read("column", names, _NAMED)
    notes += [] if len(known) > 1 else ["the file names no sequences: read as one"]
    draft = Draft(
        path=source.path,
        choices=block.choices,
        lengths=run_lengths(block.key),
        layers=block.layers,
        software="llama.cpp" if bare else "",
        notes=notes,
    )
    return build(draft, options)


def _batches(source: Source, names: list[str] | tuple[str, ...]) -> pv.CSVStreamingReader | list[Any]:
    kinds = {"token": pa.int64(), "layer": pa.int32(), "experts": pa.string(), "sequence": pa.string()}
    wanted = [name for name in _NAMED if name in names]
    try:
        reader = pv.open_csv(
            source.path,
            pv.ReadOptions(column_names=list(names), skip_rows=int(names != _BARE), block_size=PIECE),
            convert_options=pv.ConvertOptions(column_types=kinds, include_columns=wanted, strings_can_be_null=True),
        )
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise FileError(f"cannot read {source.path}: {shorten(str(error), 160)}") from error


def _rows(batch: pa.RecordBatch, sequences: dict[Any, int], source: Source) -> Rows | None:
    if not batch.num_rows:
        return None
    column = {name: batch.column(name) for name in batch.schema.names}
    if any(values.null_count for values in column.values()):
        raise FileError(f"cannot read {source.path}: a row lacks a value")
    lists = pc.split_pattern(pc.utf8_trim_whitespace(column["experts"]), " ")
    try:
        numbers = pc.cast(lists, pa.list_(pa.int32()))
    except pa.ArrowException as error:
        told = shorten(str(error), 160)
        raise FileError(f"cannot read {source.path}: experts are not names separated by spaces: {told}") from error
    names = column.get("sequence", pa.array(np.zeros(batch.num_rows, np.int8)))
    return Rows(
        key=first_names(names, sequences),
        layer=column["layer"].to_numpy().astype(np.int64),
        tokens=np.ones(batch.num_rows, np.int64),
        ids=lists_to_block(numbers, source.path, np.int32),
    )


CSV = Importer(
    "csv",
    'CSV with columns token, layer, experts (and sequence), or llama.cpp\'s layer,"names" rows',
    _recognises,
    _read,
)
