"""Hostile tables at the doors of `calibrate`, `validate` and traces of requests: lying Parquet, endless CSV, bombs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_fixture import assert_refused, run

from moesim.errors import FileError
from moesim.parquet_files import Most, read_parquet
from moesim.serving import trace_file

HEAD = b"kind,gpu,time\n"


def unsigned(number: int) -> bytes:
    """A whole number as thrift writes lengths."""
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def varint(number: int) -> bytes:
    """A whole number as thrift writes values."""
    return unsigned(2 * number)


def parquet(table: pa.Table, **how: object) -> bytes:
    held = io.BytesIO()
    pq.write_table(table, held, **how)
    return held.getvalue()


@cache
def plain(rows: int = 1_100_003) -> bytes:
    """A small file of many equal rows."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["gemm"]))
    return parquet(pa.table({"kind": texts, "gpu": texts, "time": np.ones(rows)}), row_group_size=rows)


def lying(times: int) -> bytes:
    """Its footer declares other rows in the first so many places where it tells them."""
    data = plain()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert data[begin:].count(varint(1_100_003)) >= 5
    return data[:begin] + data[begin:].replace(varint(1_100_003), varint(134_000_000), times)


def long_texts(time: str = "time") -> bytes:
    """Millions of equal texts, each a megabyte long, in some kilobytes."""
    rows = 2_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 1_000_000]))
    names = ["kind", "gpu", time] if time == "time" else ["input_tokens", "output_tokens", time]
    return parquet(pa.table(dict(zip(names, (texts, texts, pa.array(np.ones(rows))), strict=True))), store_schema=False)


def levels() -> bytes:
    """A footer whose schema is 100,000 groups inside each other."""
    schema = b"\x15\x02\x19\xfc" + unsigned(100_001) + b"\x35\x00\x18\x01a\x15\x02\x00" * 100_000
    footer = schema + b"\x15\x02\x25\x00\x18\x01a\x00\x16\x00\x19\x0c\x00"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a billion rows": ("a.parquet", lambda: lying(9), "it holds 134,000,000 rows in 3 columns; at most"),
    "other rows in groups": ("a.parquet", lambda: lying(1), "at most 3,000,000 in 500 are read"),
    "texts repeated": ("a.parquet", long_texts, "repeats long texts too often"),
    "a footer of levels": ("a.parquet", levels, "columns and levels; at most 500"),
    "a footer of gigabytes": ("a.parquet", lambda: b"PAR1" + bytes(99) + b"\xff" * 4 + b"PAR1", "no sound Parquet"),
    "a cut file": ("a.parquet", lambda: plain()[:3000], "no sound Parquet file"),
    "lists": ("a.parquet", lambda: parquet(pa.table({"kind": [["a"]], "gpu": ["b"]})), "is nested, expected plain"),
    "a pickle as Parquet": ("a.parquet", lambda: pickle.dumps(1), "no sound Parquet file"),
    "a pickle as CSV": ("a.csv", lambda: pickle.dumps({"kind": 1}), "is not UTF-8 text"),
    "an endless line": ("a.csv", lambda: HEAD + b"1," * 41_000_000, "more than 40,000,000 cells"),
    "an endless heading": ("a.csv", lambda: b"x," * 1_000_000, "more than 500 columns"),
    "a number of digits": ("a.csv", lambda: HEAD + b"gemm,h100-sxm," + b"9" * 10_000, "expected a number"),
    "colours": ("a.csv", lambda: HEAD + b"\x1b[31m,h100-sxm,1\n", "\ufffd[31m; allowed"),
    "a formula": ("a.csv", lambda: HEAD + b"=cmd|'/C calc'!A0,h100-sxm,1\n", "allowed: all_to_all"),
    "a gzip bomb": ("a.csv.gz", lambda: gzip.compress(HEAD + bytes(200 << 20), 9), "unpacks to more than 128 MiB"),
    "a workbook": ("a.xlsx", lambda: b"PK\x03\x04", "ends in .csv, .csv.gz, .parquet"),
    "a pickle": ("a.pkl", lambda: pickle.dumps(1), "ends in .csv, .csv.gz, .parquet"),
}


@pytest.mark.parametrize("file", FILES)
def test_a_measured_table_that_harms_is_refused(file: str, tmp_path: Path) -> None:
    name, made, said = FILES[file]
    (tmp_path / name).write_bytes(made())
    assert_refused(run(tmp_path, "calibrate", name, "--out", "out.yaml"), said, memory=700 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("file", ["a billion rows", "texts repeated", "a footer of levels", "an endless line"])
def test_so_is_one_that_is_to_be_validated(file: str, tmp_path: Path) -> None:
    name, made, said = FILES[file]
    (tmp_path / name).write_bytes(made())
    assert_refused(run(tmp_path, "validate", name), said, memory=700 << 20)


@pytest.mark.parametrize("name", ["pipe.csv", "zero.parquet", "circle.csv", "no\nsuch\x1b[2J.csv", "/dev/zero"])
def test_what_is_no_plain_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    assert_refused(run(tmp_path, "calibrate", name, "--out", "out.yaml"), memory=100 << 20)


def test_what_pages_say_is_added_up_whatever_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    long = pa.table({"text": ["x" * 60_000_000]})
    pq.write_table(long, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 30_000
    assert read_parquet(path, Most(1, 1, 80 << 20)).equals(long)
    size = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    data = path.read_bytes()
    assert data.count(varint(size)) >= 1
    path.write_bytes(data.replace(varint(size), varint(1 << 21)[:3] + b"\x01"))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size < 5_000_000
    with pytest.raises(FileError, match="it unpacks to more than 50 MiB"):
        read_parquet(path, Most(1, 1, 50 << 20))


def test_a_sound_table_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = [f"name {n % 7}" if n % 5 else None for n in range(30_000)]
    table = pa.table({"a.b": np.arange(30_000.0), "text": texts, "flag": [n % 2 == 0 for n in range(30_000)]})
    coded = table.append_column("coded", pa.array(texts).dictionary_encode())
    for number, how in enumerate(({}, {"compression": "zstd", "data_page_version": "2.0"}, {"use_dictionary": False})):
        for held in (table, coded):
            path = tmp_path / f"{number}.parquet"
            pq.write_table(held, path, row_group_size=7_000, data_page_size=4_096, write_page_index=True, **how)
            found = read_parquet(path, Most(30_000, 4, 10 << 20))
            assert found.schema.equals(held.schema)
            assert found.to_pydict() == held.to_pydict()
    assert read_parquet(path, Most(30_000, 4, 10 << 20), ["text"]).column_names == ["text"]
    with pytest.raises(FileError, match="no column nothing"):
        read_parquet(path, Most(30_000, 4, 10 << 20), ["nothing"])


def test_no_byte_of_a_footer_or_page_header_crashes_the_reader(tmp_path: Path) -> None:
    """Each byte that is not data, changed alone: read as it is, or refused."""
    data = parquet(pa.table({"a": [1.0, 2.0], "b": ["x", "y"]}))
    path, refused = tmp_path / "a.parquet", 0
    for place in range(4, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            read_parquet(path, Most(10, 3, 1 << 20))
        except FileError:
            refused += 1
    assert refused > len(data) // 4


SERVING = """\
model: gpt-oss-120b
cluster: {gpu: h100-sxm, gpus: 8}
instance: {gpus: 8, tensor: 8}
workload: {kind: serving, arrivals: {kind: trace, path: FILE}}
"""
ASKED = b'{"timestamp": 0, "input_tokens": 9, "output_tokens": 9, "x": '
REQUESTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a footer of levels": ("a.parquet", levels, "columns and levels"),
    "texts repeated": ("a.parquet", lambda: long_texts("timestamp"), "repeats long texts too often"),
    "brackets": ("a.jsonl", lambda: b'{"timestamp": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "no JSON object"),
    "braces passed over": (
        "a.jsonl",
        lambda: ASKED + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b"\n",
        "no JSON object",
    ),
    "brackets later": (
        "a.jsonl",
        lambda: ASKED + b'1}\n{"timestamp": 1, "input_tokens": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "cannot be read",
    ),
    "an endless line": (
        "a.csv",
        lambda: b"timestamp,input_tokens,output_tokens\n" + b"1," * 9_000_000,
        "cannot be read",
    ),
    "digits": ("a.csv", lambda: b"timestamp,input_tokens,output_tokens\n0," + b"9" * 10_000 + b",1\n", "not a number"),
    "a pickle": ("a.csv", lambda: pickle.dumps({"timestamp": 1}), "cannot be read"),
}


@pytest.mark.skipif(not hasattr(trace_file, "read_rows"), reason="traces of requests are read in the old way")
@pytest.mark.parametrize("file", REQUESTS)
def test_a_trace_of_requests_that_harms_is_refused(file: str, tmp_path: Path) -> None:
    name, made, said = REQUESTS[file]
    (tmp_path / name).write_bytes(made())
    (tmp_path / "s.yaml").write_text(SERVING.replace("FILE", name))
    assert_refused(run(tmp_path, "estimate", "s.yaml"), said, memory=700 << 20)
