"""Large text files piece by piece: JSON lines and CSV as Arrow tables, and rows of tables as one block of choices.

N rows (a token, or several tokens, in one layer), T tokens, L layers, K choices.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.inputs import source_of
from moesim.traces.importers.json_text import MAX_TEXT, parse_json
from moesim.traces.trace import MAX_LAYERS

PIECE = 16 << 20
MAX_LINE = MAX_TEXT
MAX_CHOICES = 512
MAX_NUMBERS = 1 << 31
MAX_SPARSE = 8
FREE_NUMBERS = 1 << 24
Integers = NDArray[np.int64]


def pieces(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines."""
    rest = b""
    try:
        with source_of(path).open("rb") as file:
            while block := file.read(PIECE):
                head, newline, tail = block.rpartition(b"\n")
                if newline:
                    yield rest + head + b"\n"
                    rest = tail
                else:
                    rest += block
                if len(rest) > MAX_LINE:
                    raise FileError(f"cannot read {path}: a line is longer than {MAX_LINE >> 20} MiB")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if rest.strip():
        yield rest


def json_tables(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Columns of JSON lines, other names left out; raises `FileError` for a line that is no such row.

    Pieces are parsed ahead of the caller, on as many threads as there are cores, up to four.
    """
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[tuple[pa.Table | pa.ArrowException, int]]] = deque()
        line = 0
        for piece in pieces(path):
            waiting.append(pool.submit(_parsed, piece, schema))
            if len(waiting) > threads:
                table, line = _finished(waiting.popleft(), line, path)
                yield table
        for future in waiting:
            table, line = _finished(future, line, path)
            yield table


def _parsed(piece: bytes, schema: pa.Schema) -> tuple[pa.Table | pa.ArrowException, int]:
    """The piece as a table, or what is wrong with it; and how many lines it has."""
    ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == 10)
    lines = ends.size + (not piece.endswith(b"\n"))
    longest = int(np.diff(ends, prepend=-1, append=len(piece)).max())
    read = pj.ReadOptions(use_threads=False, block_size=max(PIECE, longest + 2))
    parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        return pj.read_json(pa.BufferReader(piece), read, parse), lines
    except pa.ArrowException as error:
        return error, lines


def _finished(future: Future[tuple[pa.Table | pa.ArrowException, int]], line: int, path: Path) -> tuple[pa.Table, int]:
    """The table, and the number of the last line so far."""
    table, lines = future.result()
    if isinstance(table, pa.ArrowException):
        where = f"lines {line + 1:,} to {line + lines:,}"
        raise FileError(f"cannot read {path}: {where}: {shorten(str(table), 160)}") from table
    return table, line + lines


def json_rows(path: Path, limit: int = 1 << 24) -> Iterator[dict[str, Any]]:
    """Each line as a JSON object; for files of few, rich lines."""
    number = 0
    for piece in pieces(path):
        for line in piece.splitlines():
            number += 1
            if not line.strip():
                continue
            row = parse_json(line, f"{path}: line {number:,}")
            if not isinstance(row, dict) or number > limit:
                raise FileError(f"cannot read {path}: line {number:,} is not a JSON object, or one too many")
            yield row


def first_names(names: pa.Array | pa.ChunkedArray, known: dict[Any, int]) -> Integers:
    """Each name's number in order of first appearance, over all calls with the same `known`."""
    coded = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    coded = coded.dictionary_encode(null_encoding="encode")
    own = [known.setdefault(name, len(known)) for name in coded.dictionary.to_pylist()]
    return np.asarray(np.asarray(own, np.int64)[coded.indices.to_numpy(zero_copy_only=False)])


def lists_to_block(
    column: pa.Array | pa.ChunkedArray, path: Path, kind: type[np.generic], fill: Any = -1
) -> NDArray[Any]:
    """A column of lists as [N, K], shorter lists filled at their end."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if lists.null_count or lists.flatten().null_count:
        raise FileError(f"cannot read {path}: a row lacks its list, or a number in it")
    lengths = np.diff(lists.offsets.to_numpy())
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(kind)
    width = int(lengths.max(initial=0))
    if width > MAX_CHOICES:
        raise FileError(f"cannot read {path}: a row has {width:,} choices; at most {MAX_CHOICES} are read")
    if width and (lengths == width).all():
        return np.asarray(values.reshape(-1, width))
    _refuse_sparse(len(lengths) * width, values.size, path)
    block = np.full((len(lengths), width), fill, kind)
    block[np.arange(width) < lengths[:, None]] = values
    return block


@dataclass(frozen=True)
class Rows:
    """Rows as they were read: `key` [N] (a request, a step), `layer` [N], `tokens` [N] of each row, `ids` [M, K] and
    `weights` [M, K] of all their tokens one after the other."""

    key: Integers
    layer: Integers
    tokens: Integers
    ids: NDArray[Any]
    weights: NDArray[Any] | None = None

    @classmethod
    def joined(cls, parts: list[Rows], path: Path) -> Rows:
        """All parts one after the other; empties the list, so that they are not kept twice."""
        if not parts:
            raise FileError(f"cannot read {path}: it holds no row with a choice")
        width = max(part.ids.shape[1] for part in parts)
        _refuse_sparse(width * sum(len(part.ids) for part in parts), sum(part.ids.size for part in parts), path)
        weights = [part.weights for part in parts if part.weights is not None]
        whole = cls(
            key=np.concatenate([part.key for part in parts]),
            layer=np.concatenate([part.layer for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            ids=np.concatenate([_widened(part.ids, width, -1) for part in parts]),
            weights=np.concatenate([_widened(w, width, 0) for w in weights]) if len(weights) == len(parts) else None,
        )
        parts.clear()
        return whole


@dataclass(frozen=True)
class Block:
    """Rows put together over layers: `choices` and `weights` [T, L, K], `key` and `place` [T] of each token (the
    place counts its key's rows), `layers` [L]; `left_out`: rows whose key has not the same in every layer."""

    choices: NDArray[Any]
    weights: NDArray[Any] | None
    key: Integers
    place: Integers
    layers: list[int]
    left_out: int


def put_together(rows: Rows, path: Path, refuse: Callable[[int], str] | None = None) -> Block:
    """The n-th row of a key in one layer and its n-th row in the others are the same tokens; keys go up.

    Rows of a key that has not as many rows, of as many tokens, in every layer are left out and counted; where `refuse`
    is given, they raise `FileError` with what it says of such a key.
    """
    keys, key = _numbered(rows.key)
    layers, layer = _numbered(rows.layer)
    if layers[0] < 0 or layers.size > MAX_LAYERS or keys.size * layers.size > MAX_SPARSE * key.size:
        raise FileError(f"cannot read {path}: a layer is negative, or most of its {layers.size:,} layers have no rows")
    code = key * layers.size + layer
    order = np.argsort(code, kind="stable")
    counts = np.bincount(code, minlength=keys.size * layers.size).reshape(keys.size, layers.size)
    complete = (counts == counts[:, :1]).all(axis=1)
    source, owner, place = _rows_by_layer(order, counts, complete)
    unequal = (rows.tokens[source] != rows.tokens[source[:, :1]]).any(axis=1)
    complete[owner[unequal]] = False
    if refuse is not None and not complete.all():
        raise FileError(f"cannot read {path}: {refuse(int(keys[~complete][0]))}")
    if not complete.any():
        raise FileError(f"cannot read {path}: no tokens were recorded in all of its {layers.size} layers")
    kept = complete[owner]
    if not kept.all():
        source, owner, place = source[kept], owner[kept], place[kept]
    sizes = rows.tokens[source[:, 0]]
    return Block(
        choices=_gathered(rows.ids, rows.tokens, source),
        weights=None if rows.weights is None else _gathered(rows.weights, rows.tokens, source),
        key=np.repeat(keys[owner], sizes),
        place=np.repeat(place, sizes),
        layers=[int(name) for name in layers],
        left_out=rows.key.size - source.size,
    )


def _numbered(names: Integers) -> tuple[Integers, Integers]:
    """The different names, and the number of each entry's among them [N]; without sorting where names are small."""
    if names.min() < 0 or names.max() > names.size:
        return np.unique(names, return_inverse=True)
    present = np.bincount(names) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[names]


def _rows_by_layer(
    order: Integers, counts: Integers, complete: NDArray[np.bool_]
) -> tuple[Integers, Integers, Integers]:
    """Of complete keys: the row of each layer [B, L], its key's number [B], and its place among the key's rows [B].
    `order` sorts rows by key and layer; `counts` [keys, L]."""
    begins = np.cumsum(counts.sum(axis=1)) - counts.sum(axis=1)
    sizes = np.where(complete, counts[:, 0], 0)
    owner = np.repeat(np.arange(sizes.size), sizes)
    place = np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    across = np.arange(counts.shape[1]) * sizes[owner][:, None]
    return order[(begins[owner] + place)[:, None] + across], owner, place


def _gathered(values: NDArray[Any], tokens: Integers, source: Integers) -> NDArray[Any]:
    """Values of the tokens of rows [M, K], by token and layer [T, L, K]; `source` [B, L]: the row of each layer."""
    starts = np.cumsum(tokens) - tokens
    sizes = tokens[source[:, 0]]
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    whole = np.empty((offset.size, source.shape[1], values.shape[1]), values.dtype)
    for index in range(source.shape[1]):
        whole[:, index] = values[np.repeat(starts[source[:, index]], sizes) + offset]
    return whole


def run_lengths(values: Integers) -> Integers:
    """Lengths of the runs of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1 if values.size else 0))
    return np.diff(starts, append=values.size)


def _refuse_sparse(filled: int, held: int, path: Path) -> None:
    """Raises where a few long rows would make all the short ones take memory."""
    if filled > MAX_NUMBERS or filled > max(FREE_NUMBERS, MAX_SPARSE * held):
        raise FileError(
            f"cannot read {path}: its rows have {held:,} choices, filled up to one length {filled:,}: more than "
            f"{MAX_SPARSE} times as many, or than {MAX_NUMBERS:,}"
        )


def _widened(block: NDArray[Any], width: int, fill: int) -> NDArray[Any]:
    missing = width - block.shape[1]
    return np.pad(block, ((0, 0), (0, missing)), constant_values=fill) if missing else block
