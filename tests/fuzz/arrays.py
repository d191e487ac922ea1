"""Changes files of arrays and columns by their structure: safetensors, npy, npz and Parquet."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from random import Random
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .trees import Words, changed_tree

_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65534, 65535, 65536, 2**31 - 1, 2**31, 2**63 - 1, -(2**63))
_FLOATS = (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-300, 1e300, 0.5)
_TYPES = ("u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "?", "S3", "U2", "c8", "M8[s]")
_ARROW = (pa.string(), pa.int8(), pa.int64(), pa.float32(), pa.bool_(), pa.timestamp("us"), pa.binary(), pa.date32())


def changed(data: bytes, random: Random, words: Words) -> bytes | None:
    """The file with one array, one column or its header changed; None where it is no such file, or a broken one."""
    kinds = ((b"PK", _npz), (b"\x93NUMPY", _npy), (b"PAR1", _parquet))
    how = next((change for sign, change in kinds if data.startswith(sign)), None)
    if how is None:
        return _tensors(data, random, words) if data[8:9] == b"{" else None
    try:
        return how(data, random)
    except (ValueError, OSError, TypeError, KeyError, OverflowError, EOFError, SyntaxError) as error:
        return _unread(error)
    except (zipfile.BadZipFile, zlib.error, pa.ArrowException, NotImplementedError, RuntimeError, TokenError) as error:
        return _unread(error)


def _unread(_: Exception) -> None:
    """A file that an earlier change has broken is changed as plain bytes."""


def _tensors(data: bytes, random: Random, words: Words) -> bytes | None:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    body = bytearray(data[8 + length :])
    if random.randrange(3) and body:
        _spoil(body, random)
    elif isinstance(header, dict):
        _header(header, random, words)
    text = json.dumps(header, default=str).encode()
    stated = len(text) if random.randrange(12) else random.choice((0, 1, len(text) + 8, 1 << 40, 2**64 - 1))
    return stated.to_bytes(8, "little") + text + bytes(body)


def _header(header: dict[str, Any], random: Random, words: Words) -> None:
    """The header's tree, or that of the JSON text in its metadata."""
    texts = header.get("__metadata__")
    name = random.choice(list(texts)) if isinstance(texts, dict) and texts else None
    try:
        inner = json.loads(texts[name]) if name is not None else None
    except (ValueError, TypeError, RecursionError):
        inner = None
    if isinstance(inner, dict) and random.randrange(2):
        texts[name] = json.dumps(changed_tree(inner, random, words), default=str)
    else:
        changed_tree(header, random, words)


def _spoil(body: bytearray, random: Random) -> None:
    """Overwrites a run of bytes."""
    begin = random.randrange(len(body))
    run = bytes([random.choice((0, 1, 127, 128, 254, 255))]) * random.randrange(1, 17)
    body[begin : begin + len(run)] = run[: len(body) - begin]


def _npy(data: bytes, random: Random) -> bytes:
    out = io.BytesIO()
    np.save(out, _array(np.load(io.BytesIO(data), allow_pickle=False), random))
    return out.getvalue()


def _npz(data: bytes, random: Random) -> bytes | None:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files[:16]}
    name = random.choice(list(held))
    how = random.randrange(6)
    if how == 0:
        del held[name]
    elif how == 1:
        held[random.choice(("experts", "starts", "lengths", "domain", "step", "token_id", "weights", "x"))] = held[name]
    else:
        held[name] = _array(held[name], random)
    out = io.BytesIO()
    np.savez(out, **held)
    return out.getvalue()


def _array(array: np.ndarray[Any, Any], random: Random) -> np.ndarray[Any, Any]:
    """The array of another type or shape, or with another number in it."""
    how = random.randrange(4)
    with np.errstate(all="ignore"):
        if how == 0:
            return array.astype(random.choice(_TYPES))
        if how == 1:
            shapes = [(-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1], (0, *array.shape[1:])]
            shape = random.choice(shapes)
            return np.empty(shape, array.dtype) if 0 in shape else array.reshape(shape)
        if how == 2:
            return np.concatenate([array, array]) if random.randrange(2) else array[: random.randrange(len(array) + 1)]
        found = array.copy()
        numbers = _FLOATS if found.dtype.kind == "f" else _NUMBERS
        number = np.asarray(random.choice(numbers)).astype(found.dtype)
        found.reshape(-1)[random.randrange(max(1, found.size)) :][: random.randrange(1, 5)] = number
        return found


def _parquet(data: bytes, random: Random) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    how = random.randrange(6)
    if how == 0:
        table = table.remove_column(place)
    elif how == 1:
        table = table.append_column(f"{name}s", column)
    elif how == 2:
        table = table.set_column(place, name, column.cast(random.choice(_ARROW), safe=False))
    elif how == 3:
        table = table.slice(random.randrange(table.num_rows + 1))
    else:
        values = column.to_pylist()
        values[random.randrange(len(values))] = random.choice((None, 0, -1, 1e300, 2**40))
        table = table.set_column(place, name, pa.array(values, from_pandas=False))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()
