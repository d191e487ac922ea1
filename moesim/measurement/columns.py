"""The columns of a measurement table, kind by kind with unit and meaning, and how a table is written.

One long table a file: each row is one timed operation, described with the words of a validation case's `op`. A column
that does not belong to a row's kind is empty; a column that is not listed here is kept as it is.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moesim.columns import Column
from moesim.errors import MissingPackageError, UserError
from moesim.files import target_of, write_whole

Row = Mapping[str, Any]

COMMON: dict[str, Column] = {
    "kind": Column("", "what was timed: a key of `COLUMNS`", "str"),
    "gpu": Column("", "the GPU's catalog name, or the device's own name where the catalog has none", "str"),
    "software": Column("", "what ran, with release, e.g. nccl 2.27.3", "str"),
    "source": Column("", "where the number comes from", "str"),
    "time": Column("s", "median over repeats; of a collective the slowest rank's"),
    "spread": Column(
        "fraction", "half the distance from the 10th to the 90th percentile, over the median; may be empty"
    ),
    "repeats": Column("", "samples that were timed, each of one call or the mean of several", "int64"),
}

_DTYPE = Column("", "bf16, fp16, fp32, fp8 (a scale a tensor), fp8-block (a scale a block), nvfp4, mxfp8 ...", "str")
_KERNEL = Column("", "which kernel family or library call ran", "str")
_RANKS = Column("", "processes, one GPU each", "int64")
_DOMAIN = Column("", "ranks of one scale-up domain", "int64")
_NIC = Column("B/s", "a GPU's scale-out bandwidth in one direction; empty inside one domain")
_LIBRARY = Column("", "communication library, e.g. nccl, deepep-normal", "str")
_HIDDEN = Column("", "width of a token", "int64")
_TOP_K = Column("", "experts a token", "int64")
_EXPERTS = Column("", "experts of the layer, all ranks together", "int64")

_EXCHANGE: dict[str, Column] = {
    "collective": Column(
        "",
        "all-gather, reduce-scatter, all-reduce, all-to-all, all-to-all-unequal (sizes differ by pair) or "
        "point-to-point (each rank to the next one at once)",
        "str",
    ),
    "ranks": _RANKS,
    "ranks_per_domain": _DOMAIN,
    "nic": _NIC,
    "bytes": Column(
        "B",
        "send buffer of a rank, its own share included; of an all-gather the whole that each rank has at the end (as "
        "nccl-tests counts it); of an unequal all-to-all the mean over ranks",
        "int64",
    ),
    "library": _LIBRARY,
    "imbalance": Column("ratio", "bytes that the busiest rank receives over the mean; 1 or empty where equal"),
}

COLUMNS: dict[str, dict[str, Column]] = {
    "gemm": {
        "m": Column("", "rows of x [m, k]", "int64"),
        "n": Column("", "columns of w [k, n]", "int64"),
        "k": Column("", "length of the sums", "int64"),
        "dtype": _DTYPE,
        "kernel": _KERNEL,
    },
    "expert_gemm": {
        "tokens": Column("", "tokens of the whole expert-parallel group", "int64"),
        "hidden": _HIDDEN,
        "inter": Column("", "width of an expert before any tensor split", "int64"),
        "top_k": _TOP_K,
        "experts": _EXPERTS,
        "expert_parallel": Column("", "ranks that share the experts", "int64"),
        "expert_tensor": Column("", "ranks that share one expert", "int64"),
        "dtype": _DTYPE,
        "load": Column("", "how tokens fall on experts: balanced, power_law_1.2, uniform, ...", "str"),
        "kernel": _KERNEL,
        "rows": Column("", "own measurements: JSON list of the rows of each expert on the timed rank", "str"),
    },
    "attention": {
        "tokens": Column("", "queries, all sequences together", "int64"),
        "length": Column("", "keys of a sequence", "int64"),
        "heads": Column("", "query heads", "int64"),
        "kv_heads": Column("", "key and value heads", "int64"),
        "head_dim": Column("", "width of a query and key head", "int64"),
        "value_dim": Column("", "width of a value head", "int64"),
        "causal": Column("", "whether a query sees only keys up to its own place", "bool"),
        "direction": Column("", "forward, or backward alone", "str"),
        "dtype": _DTYPE,
    },
    "memory_bound": {
        "what": Column(
            "",
            "copy, host-to-device, device-to-host, permute, unpermute, cast, norm, router, top-k, activation, "
            "embedding, optimizer, ...",
            "str",
        ),
        "elements": Column("", "elements of the tensor that the pass is about (`ELEMENTS`)", "int64"),
        "dtype": _DTYPE,
    },
    "launch": {},
    "collective": _EXCHANGE,
    "all_to_all": _EXCHANGE,
    "dispatch_combine": {
        "direction": Column("", "dispatch or combine", "str"),
        "tokens": Column("", "tokens of a rank", "int64"),
        "hidden": _HIDDEN,
        "top_k": _TOP_K,
        "experts": _EXPERTS,
        "ranks": _RANKS,
        "ranks_per_domain": _DOMAIN,
        "nic": _NIC,
        "sms": Column("", "multiprocessors that the transfer takes", "int64"),
        "library": _LIBRARY,
        "dispatch": Column("", "number format of dispatched tokens", "str"),
        "combine": Column("", "number format of combined tokens", "str"),
        "groups": Column("", "expert groups of group-limited routing; empty where none", "int64"),
        "top_groups": Column("", "groups that a token may choose from", "int64"),
    },
}

ELEMENTS: dict[str, str] = {
    "copy": "elements copied: read once, written once",
    "host-to-device": "elements copied from pinned host memory",
    "device-to-host": "elements copied to pinned host memory",
    "permute": "elements of the sorted rows that are written: tokens x top_k x hidden",
    "unpermute": "elements of the sorted rows that are read: tokens x top_k x hidden; tokens x hidden are written",
    "cast": "elements converted from bf16 (fp32 on a processor) to `dtype`",
    "norm": "elements normalised (RMS norm with weights): tokens x hidden",
    "activation": "elements that a gated activation writes; it reads twice as many",
    "router": "elements of the tokens that the router reads: tokens x hidden; softmax and top-k included",
    "top-k": "logits read: tokens x experts; softmax included",
    "embedding": "elements written: tokens x hidden",
    "optimizer": "parameters that one fused Adam step updates; `dtype` is theirs, and their gradients' and moments'",
}
"""What `elements` counts in a row of kind memory_bound, by `what`."""

DETAILS: dict[str, Column] = {
    "tokens": Column("", "tokens of the pass, for router, top-k, permute, unpermute, norm and embedding", "int64"),
    "hidden": _HIDDEN,
    "top_k": _TOP_K,
    "experts": _EXPERTS,
    "load": Column("", "how an unequal exchange differs: log-normal SIGMA or hot-rank FACTOR", "str"),
    "sequences": Column("", "sequences that an attention's queries belong to; tokens / length where empty", "int64"),
    "products_time": Column("s", "the matrix products alone: without casts, permutation, activation and combination"),
    "launched": Column("", "stream: launched one by one by the processor; graph: replayed from a CUDA graph", "str"),
    "sets": Column("", "sets of inputs that took turns, so that no cache held the weights", "int64"),
    "clock": Column("Hz", "multiprocessor clock right after the row's runs, where it could be read"),
    "power": Column("W", "power draw right after the row's runs, where it could be read"),
}
"""Columns that an own measurement adds beside those of a row's kind; `what` of a launch says stream or graph."""


def names() -> list[str]:
    """Every known column, in the order in which a file has them."""
    found = dict.fromkeys(COMMON)
    for columns in COLUMNS.values():
        found |= dict.fromkeys(columns)
    return list(found | dict.fromkeys(DETAILS))


def column(name: str) -> Column | None:
    """What is known of a column, or None."""
    for columns in (COMMON, *COLUMNS.values(), DETAILS):
        if name in columns:
            return columns[name]
    return None


def write(table: Iterable[Row] | Any, path: str | os.PathLike[str]) -> Path:
    """Write rows (mappings, or a pandas DataFrame) as CSV or Parquet by suffix, the whole file or none.

    Returns the file; raises `UserError` for a bad table or suffix, `FileError` where the file cannot be written.
    """
    target = target_of(path)
    suffix = target.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"cannot write {path}: a measurement file ends in .csv or .parquet")
    rows = _rows(table)
    used = {name for row in rows for name, value in row.items() if not empty(value)}
    order = [name for name in names() if name in used or name in COMMON]
    order += dict.fromkeys(name for row in rows for name in row if name in used and column(name) is None)
    content = _csv(rows, order) if suffix == ".csv" else _parquet(rows, order)
    write_whole(path, content)
    return target


def empty(value: object) -> bool:
    """Whether a cell holds nothing: None, an empty text, or not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _rows(table: Any) -> list[dict[str, Any]]:
    """The table's rows as dicts; every row is of a known kind and has a positive time."""
    found = table.to_dict(orient="records") if hasattr(table, "to_dict") else [dict(row) for row in table]
    if not found:
        raise UserError("there is nothing to write: the measurement table has no rows")
    for number, row in enumerate(found, 1):
        if row.get("kind") not in COLUMNS:
            raise UserError(f"row {number}: unknown kind {row.get('kind')!r}; allowed: {', '.join(COLUMNS)}")
        time = row.get("time")
        if isinstance(time, str) or empty(time) or not 0 < float(str(time)) < math.inf:
            raise UserError(f"row {number}: time is {time!r}; it must be a positive number of seconds")
    return [{str(name): _plain(str(name), value) for name, value in row.items()} for row in found]


def _plain(name: str, value: Any) -> Any:
    """A cell without numpy's types; whole numbers that a table held as floats are whole again."""
    if empty(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    known = column(name)
    whole = known is not None and known.dtype == "int64" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _csv(rows: list[dict[str, Any]], order: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(order)
    writer.writerows([[_cell(row.get(name)) for name in order] for row in rows])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else value


def _parquet(rows: list[dict[str, Any]], order: list[str]) -> bytes:
    """The same table with types, unit and meaning of each column in its metadata."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("writing Parquet needs pyarrow: pip install pyarrow, or write .csv") from error
    arrays, fields = [], []
    for name in order:
        known = column(name)
        values = [row.get(name) for row in rows]
        try:
            array = arrow.array(values, type=_TYPES[known.dtype](arrow) if known else None)
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise UserError(f"column {name!r} of the measurement table holds mixed values: {error}") from error
        about = {"unit": known.unit, "meaning": known.meaning} if known else None
        arrays.append(array)
        fields.append(arrow.field(name, array.type, metadata=about))
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields)), sink)
    return sink.getvalue()


_TYPES: dict[str, Any] = {
    "str": lambda arrow: arrow.string(),
    "float64": lambda arrow: arrow.float64(),
    "int64": lambda arrow: arrow.int64(),
    "bool": lambda arrow: arrow.bool_(),
}
