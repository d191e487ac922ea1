"""Files of a result: exact round trip, same bytes, whole or absent, and refused when they are not ours."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results_fixture import Shape, dense, estimated, simulated

from moesim.columns import OPERATIONS, ROUTING
from moesim.errors import FileError, InternalError
from moesim.results import store
from moesim.results.result import Columns, Result
from moesim.results.store import FILES, TRAFFIC, arrow_table, check_folder, load, save


def assert_same_columns(one: Columns | None, other: Columns | None) -> None:
    assert (one is None) == (other is None)
    for name in one or {}:
        assert np.array_equal(one[name], other[name]), name


def assert_same(one: Result, other: Result) -> None:
    assert one.as_dict() == other.as_dict()
    assert_same_columns(one.operation_columns, other.operation_columns)
    assert_same_columns(one.routing_columns, other.routing_columns)
    assert np.array_equal(one.traffic, other.traffic) if one.traffic is not None else other.traffic is None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [simulated, estimated, dense])
def test_what_is_saved_is_loaded(make: object, tmp_path: Path) -> None:
    result = make()
    written = save(result, tmp_path / "new" / "deep")
    assert sorted(path.name for path in written) == sorted(contents(tmp_path / "new" / "deep"))
    assert_same(load(tmp_path / "new" / "deep"), result)


def test_one_result_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    save(simulated(), tmp_path / "a")
    save(simulated(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == set(FILES)
    for name, data in contents(tmp_path / "a").items():
        assert str(tmp_path).encode() not in data, name
        assert os.uname().nodename.encode() not in data or len(os.uname().nodename) < 4, name


def test_a_loaded_result_is_saved_to_the_same_bytes(tmp_path: Path) -> None:
    save(simulated(), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tables_say_what_their_columns_mean(tmp_path: Path) -> None:
    save(simulated(), tmp_path)
    for name, described in (("operations", OPERATIONS), ("routing", ROUTING), ("traffic", TRAFFIC)):
        schema = pq.read_schema(tmp_path / f"{name}.parquet")
        assert schema.names == list(described)
        for column, field in zip(described.values(), schema, strict=True):
            assert field.metadata == {b"unit": column.unit.encode(), b"meaning": column.meaning.encode()}
    assert isinstance(pq.read_schema(tmp_path / "operations.parquet").field("kind").type, pa.DictionaryType)


def test_tables_of_an_earlier_result_go_away(tmp_path: Path) -> None:
    save(simulated(), tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    save(dense(), tmp_path)
    assert set(contents(tmp_path)) == {"result.json", "report.html", "mine.txt"}
    assert_same(load(tmp_path), dense())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_a_broken_save_leaves_what_was_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise error

    save(simulated(), tmp_path / "old")
    before = contents(tmp_path / "old")
    monkeypatch.setattr(store, "write_html", fail)
    for folder in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(FileError if isinstance(error, OSError) else error):
            save(simulated(Shape(seed=8)), folder)
    assert contents(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Makes the system refuse to write files beyond `size`, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [1_000, 200_000])
def test_the_system_refusing_to_write_is_a_clear_error(size: int, tmp_path: Path) -> None:
    with largest_file(size), pytest.raises(FileError, match=r"cannot write results to .*File too large"):
        save(simulated(), tmp_path / "out")
    assert contents(tmp_path) == {}


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="it is a file, not a folder"):
        save(simulated(), tmp_path / "file")
    with pytest.raises(FileError, match="Not a directory"):
        check_folder(tmp_path / "file" / "below")
    with pytest.raises(FileError, match="too long"):
        check_folder(tmp_path / ("x" * 300))


def test_checking_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("keep")
    check_folder(tmp_path)
    assert set(contents(tmp_path)) == {"mine.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="Permission denied"):
        save(simulated(), tmp_path / "out")


def test_tables_of_another_run_are_refused(tmp_path: Path) -> None:
    save(simulated(), tmp_path / "a")
    save(simulated(Shape(seed=8)), tmp_path / "b")
    for name in ("operations.parquet", "routing.parquet", "traffic.parquet"):
        (tmp_path / "a" / name).replace(tmp_path / "b" / name)
    with pytest.raises(FileError, match="belongs to another"):
        load(tmp_path / "b")


def edit(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "result.json").read_text()) | changes
    (folder / "result.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moesim_result": 2}, "moesim_result"),
        ({"extra": 1}, "extra"),
        ({"road": "guess"}, "road"),
        ({"breakdown": {"a": float("nan")}}, "breakdown.a"),
        ({"breakdown": {"a": "1"}}, "breakdown.a"),
        ({"summary": {"step_time": {"value": 1.0}}}, "summary.step_time"),
        ({"scenario": {"a": float("inf")}}, "scenario"),
        ({"tables": {"../secret.parquet": "0"}}, "tables"),
        ({"notes": [1]}, "notes"),
    ],
)
def test_what_save_does_not_write_is_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    save(dense(), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(FileError, match=f"is not a result: {said}"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 5000, "\x00\xff"])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match="is not a result"):
        load(tmp_path)


def test_absent_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="no such file"):
        load(tmp_path / "nowhere")
    save(simulated(), tmp_path)
    monkeypatch.setattr(store, "MAX_TABLE_ROWS", 100)
    with pytest.raises(FileError, match="at most 100 in"):
        load(tmp_path)
    monkeypatch.setattr(store, "MAX_JSON_BYTES", 100)
    with pytest.raises(FileError, match="larger than"):
        load(tmp_path)


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    save(simulated(), tmp_path)
    pq.write_table(pa.table({"layer": [1]}), tmp_path / "routing.parquet")
    document = json.loads((tmp_path / "result.json").read_text())
    edit(tmp_path, tables=document["tables"] | {"routing.parquet": store.sha256(tmp_path / "routing.parquet")})
    with pytest.raises(FileError, match="its columns are not layer, sample"):
        load(tmp_path)
    (tmp_path / "routing.parquet").write_bytes(b"PAR1 nonsense PAR1")
    edit(tmp_path, tables=document["tables"] | {"routing.parquet": store.sha256(tmp_path / "routing.parquet")})
    with pytest.raises(FileError, match="cannot read"):
        load(tmp_path)


def test_a_number_that_is_not_finite_is_our_bug(tmp_path: Path) -> None:
    columns = simulated().operation_columns
    broken = {**columns, "end": np.where(columns["layer"] == 0, np.nan, columns["end"])}
    with pytest.raises(InternalError, match="end holds a number that is not finite"):
        arrow_table(broken, OPERATIONS)
    with pytest.raises(InternalError, match="differ from their description"):
        arrow_table({"layer": columns["layer"]}, OPERATIONS)
    with pytest.raises(InternalError, match="does not go into JSON"):
        save(replace(dense(), breakdown={"a": float("nan")}), tmp_path)
    assert contents(tmp_path) == {}


def test_numpy_scalars_are_written_as_numbers(tmp_path: Path) -> None:
    save(replace(dense(), breakdown={"a": np.float64(0.1), "b": np.float32(0.5)}), tmp_path)
    assert load(tmp_path).breakdown == {"a": 0.1, "b": 0.5}


def test_an_interrupt_while_publishing_waits_for_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder holds the new result whole, and the interrupt is heard."""
    result = simulated()
    save(result, tmp_path)
    replace_ = os.replace

    def interrupted(source, target):
        replace_(source, target)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(result, tmp_path)
    assert load(tmp_path).summary == result.summary
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".moesim-")]


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_moved(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(FileError, match=r"report\.html"):
        save(simulated(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
