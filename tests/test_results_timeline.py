"""The trace: valid JSON, one slice an operation, and slices of a thread never cross."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_benchmark.fixture import BenchmarkFixture
from results_fixture import LARGE, estimated, simulated

from moesim.results.result import Columns
from moesim.results.timeline import trace_json, write_trace


def events(text: str) -> tuple[list[dict[str, Any]], dict[tuple[int, int], str]]:
    """Slices, and names of threads, of a trace."""
    found = json.loads(text, parse_constant=pytest.fail)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"] == "thread_name"}
    return [event for event in found if event["ph"] == "X"], names


def assert_threads_are_clear(slices: list[dict[str, Any]]) -> None:
    threads = defaultdict(list)
    for event in slices:
        begin = round(event["ts"] * 1000)
        threads[event["pid"], event["tid"]].append((begin, begin + round(event["dur"] * 1000)))
    for spans in threads.values():
        spans.sort()
        assert all(after[0] >= before[1] for before, after in pairwise(spans))


def test_every_operation_is_a_slice_with_its_arguments() -> None:
    columns = simulated().operation_columns
    slices, names = events(trace_json(simulated()))
    assert len(slices) == len(columns["kind"])
    for index in (0, 1000, len(slices) - 1):
        event, row = slices[index], {name: column[index] for name, column in columns.items()}
        assert event["ts"] == pytest.approx(row["begin_mean"] * 1e6, abs=2e-3)
        assert event["dur"] == pytest.approx((row["end_mean"] - row["begin_mean"]) * 1e6, abs=2e-3)
        assert (event["pid"], event["name"]) == (row["stage"], row["kind"])
        assert names[event["pid"], event["tid"]] == row["stream"]
        assert [event["args"][name] for name in ("microbatch", "layer", "chunk", "phase", "basis")] == [
            row[name] for name in ("microbatch", "layer", "chunk", "phase", "basis")
        ]
        assert event["args"]["first_begin_us"] == pytest.approx(row["begin"] * 1e6, abs=2e-3)
        assert event["args"]["bytes_scale_out"] == row["bytes_out"]


def test_slices_of_a_stream_never_cross() -> None:
    slices, names = events(trace_json(simulated()))
    assert_threads_are_clear(slices)
    assert set(names.values()) == {"compute", "communication", "data-parallel"}


def operations(begin: list[float], length: list[float]) -> Columns:
    columns = simulated().operation_columns
    first = {name: column[: len(begin)].copy() for name, column in columns.items()}
    start = np.array(begin)
    first |= {"begin": start, "begin_mean": start, "end": start + length, "end_mean": start + length}
    return first | {"stage": first["stage"] * 0, "stream": np.full(len(begin), "point-to-point")}


def test_messages_in_both_directions_take_two_threads() -> None:
    columns = operations([0.0, 1.0, 3.0], [2.0, 2.0, 1.0])
    slices, names = events(trace_json(replace(simulated(), operation_columns=columns)))
    assert [names[0, event["tid"]] for event in slices] == ["point-to-point", "point-to-point 2", "point-to-point"]


@given(st.lists(st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-4)), min_size=1, max_size=40))
def test_any_overlap_is_sorted_out(spans: list[tuple[float, float]]) -> None:
    columns = operations([begin for begin, _ in spans], [length for _, length in spans])
    slices, _ = events(trace_json(replace(simulated(), operation_columns=columns)))
    assert len(slices) == len(spans)
    assert_threads_are_clear(slices)


def test_text_is_quoted_and_written_text_is_the_same() -> None:
    columns = simulated().operation_columns
    odd = {**columns, "kind": np.where(columns["kind"] == "router", 'a"b\\c</script>', columns["kind"])}
    result = replace(simulated(name='"quoted"'), operation_columns=odd)
    slices, _ = events(trace_json(result))
    assert 'a"b\\c</script>' in {event["name"] for event in slices}
    stream = io.StringIO()
    write_trace(result, stream)
    assert stream.getvalue() == trace_json(result)


def test_an_estimate_gives_an_empty_trace_that_says_so() -> None:
    trace = json.loads(trace_json(estimated()))
    assert trace["traceEvents"] == []
    assert "no operations" in trace["otherData"]["name"]


def test_two_hundred_thousand_operations(benchmark: BenchmarkFixture) -> None:
    result = simulated(LARGE)
    text = benchmark(trace_json, result)
    assert text.count('"ph":"X"') == len(result.operation_columns["kind"])
