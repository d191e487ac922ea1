"""Hostile folders of results at the doors that read them: `compare`, `moesim.load_result`, sweeps that go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_fixture import assert_refused, assert_shown, run
from results_fixture import simulated

import moesim
from moesim.errors import FileError
from moesim.results import store
from moesim.sweeps.result import Sweep
from moesim.sweeps.store import FolderStore

EVIL = "</script><script>alert(1)</script>\x1b[31m\x1b]0;title\x07\x9b2J\u202e"


@cache
def saved() -> dict[str, bytes]:
    """The files of a sound folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in moesim.save(simulated(), folder)}


def document() -> dict[str, object]:
    return json.loads(saved()["result.json"])


def with_json(folder: Path, content: bytes) -> None:
    (folder / "result.json").write_bytes(content)


def with_table(folder: Path, write: Callable[[Path], object]) -> None:
    """Another routing table, which the document vouches for."""
    path = folder / "routing.parquet"
    path.unlink()
    write(path)
    found = document()
    if path.is_file() and not path.is_symlink():
        found["tables"]["routing.parquet"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "result.json").write_text(json.dumps(found))


def many_rows(path: Path) -> None:
    columns = pq.read_schema(path.with_name("routing.parquet")) if path.exists() else store._schema(store.ROUTING)
    rows = 12_000_000
    arrays = [pa.array(np.zeros(rows), field.type) for field in columns]
    pq.write_table(pa.table(arrays, schema=columns), path, compression="zstd")


def changed(**entries: object) -> bytes:
    return json.dumps(document() | entries).encode()


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "10,000 brackets": (lambda folder: with_json(folder, b'{"name":' + b"[" * 10_000), "is not a result"),
    "10,000 digits": (lambda folder: with_json(folder, b'{"name":' + b"9" * 10_000 + b"}"), "is not a result"),
    "beyond a float": (
        lambda folder: with_json(folder, changed().replace(b'"value": ', b'"value": 1e999, "x": ', 1)),
        "",
    ),
    "another table": (lambda folder: with_json(folder, changed(tables={"../../etc/passwd": "0"})), "is not a result"),
    "large": (lambda folder: with_json(folder, b" " * (17 << 20)), "larger than 16 MiB"),
    "a pipe": (
        lambda folder: (os.unlink(folder / "result.json"), os.mkfifo(folder / "result.json")),
        "a device or a pipe",
    ),
    "a device": (
        lambda folder: (os.unlink(folder / "result.json"), (folder / "result.json").symlink_to("/dev/zero")),
        "a device or a pipe",
    ),
    "a table of a device": (
        lambda folder: with_table(folder, lambda path: path.symlink_to("/dev/zero")),
        "a device or a pipe",
    ),
    "a table of a pipe": (lambda folder: with_table(folder, os.mkfifo), "a device or a pipe"),
    "a table of other columns": (
        lambda folder: with_table(folder, lambda path: pq.write_table(pa.table({EVIL: [1]}), path)),
        "its columns are not",
    ),
    "a table of millions": (lambda folder: with_table(folder, many_rows), "12,000,000 rows"),
    "a table that is none": (
        lambda folder: with_table(folder, lambda path: path.write_bytes(b"\x80\x04.")),
        "no sound Parquet file",
    ),
}


def sound(folder: Path) -> None:
    folder.mkdir()
    for name, content in saved().items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_harms_is_refused(kind: str, tmp_path: Path) -> None:
    change, said = FOLDERS[kind]
    for name in ("a", "b"):
        sound(tmp_path / name)
    change(tmp_path / "b")
    assert_refused(run(tmp_path, "compare", "a", "b"), said, memory=500 << 20)


def test_names_in_results_reach_the_terminal_and_pages_harmless(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sound(tmp_path / name)
        stored = document()
        with_json(
            tmp_path / name,
            changed(name=EVIL + name, question=EVIL, notes=[EVIL], breakdown={EVIL: 1.0, **stored["breakdown"]}),
        )
    for words in (["compare", "a", "b"], ["compare", "a", "b", "--json"], ["compare", "a", "b", "--out", "out"]):
        told = run(tmp_path, *words, seconds=120)
        assert told.code == 0, told.err
        assert_shown(told)
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "default-src 'none'" in page


def test_a_sweep_that_harms_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.parquet"
    heads: list[bytes] = [b"[" * 50_000, b"[]", b'{"format": ' + b"9" * 5_000 + b"}", b"\xff"]
    for head in heads:
        pq.write_table(pa.table({"key": ["a"]}).replace_schema_metadata({b"moesim_sweep": head}), path)
        with pytest.raises(FileError) as caught:
            Sweep.load(tmp_path)
        assert "\n" not in str(caught.value)
    for content in (b"", b"\x80\x04.", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(FileError, match="cannot read"):
            Sweep.load(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(FileError, match="a device or a pipe"):
        Sweep.load(tmp_path)


def test_an_outcome_of_a_sweep_that_harms_counts_as_absent(tmp_path: Path) -> None:
    """Its checksum is right, for anyone may work one out."""
    kept = FolderStore(tmp_path)
    for number, body in enumerate(("[" * 50_000, "9" * 5_000, "[]", '{"a": ')):
        kept.put(f"{number:02d}", body)
        assert kept.get(f"{number:02d}") is None
    kept.put("aa", "{}")
    kept.path("aa").unlink()
    os.mkfifo(kept.path("aa"))
    assert kept.get("aa") is None
    assert len(kept.damaged) == 5
