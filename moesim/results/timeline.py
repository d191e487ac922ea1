"""The operations of a result's first step as a trace for Perfetto and chrome://tracing: a process a stage, a thread a
stream.

Slices go from mean begin to mean end over ranks, in whole nanoseconds, so that consecutive slices of a stream never
cross; the first rank's begin and the last rank's end stand in the arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from moesim.results import views
from moesim.results.result import Columns, Result
from moesim.results.views import Integers

_STREAMS = ("compute", "communication", "point-to-point", "data-parallel")
_PIECE = 20_000
_SLICE = (
    '{{"ph":"X","pid":{},"tid":{},"ts":{}.{:03d},"dur":{}.{:03d},"name":{},"args":{{"step":{},'
    '"microbatch":{},"layer":{},"chunk":{},"phase":{},"first_begin_us":{:.3f},"last_end_us":{:.3f},'
    '"bytes_scale_up":{:.0f},"bytes_scale_out":{:.0f},"rows":{:.0f},"basis":{}}}}}'
).format


def trace_json(result: Result) -> str:
    """The trace as text; without operations, an empty trace that says so."""
    return "".join(_pieces(result))


def write_trace(result: Result, stream: TextIO) -> None:
    """Writes the trace piece by piece: 200,000 operations are about 55 MB of text."""
    stream.writelines(_pieces(result))


def _pieces(result: Result) -> Iterator[str]:
    columns = result.operation_columns
    note = f"{result.name}: no operations were recorded" if columns is None else result.name
    yield f'{{"displayTimeUnit":"ms","otherData":{{"name":{json.dumps(note)}}},"traceEvents":['
    if columns is not None and len(columns["begin"]):
        columns = views.first_step(columns)  # the next looks like it; ten of DeepSeek-V3's would be 200 MB
        threads, thread, begin, end = _threads(columns)
        yield ",\n".join(_labels(columns, threads))
        for slices in _slices(columns, thread, begin, end - begin):
            yield ",\n"
            yield slices
    yield "]}\n"


def _threads(columns: Columns) -> tuple[list[str], Integers, Integers, Integers]:
    """Names of threads in reading order; [N] the thread of each operation, its begin and end in nanoseconds.

    Slices that overlap on one stream, as messages in both directions do, go to a further thread of that stream.
    """
    names, code = views.categories(columns["stream"])
    begin, end = nanoseconds(columns, code)
    lane = _lanes(columns["stage"].astype(np.int64) * len(names) + code, begin, end)
    place = {name: _STREAMS.index(name) if name in _STREAMS else len(_STREAMS) for name in names}
    pairs = sorted(set(zip(code.tolist(), lane.tolist(), strict=True)), key=lambda p: (place[names[p[0]]], *p))
    thread = {pair: index for index, pair in enumerate(pairs)}
    threads = [f"{names[stream]} {number + 1}" if number else names[stream] for stream, number in pairs]
    chosen = (thread[pair] for pair in zip(code.tolist(), lane.tolist(), strict=True))
    return threads, np.fromiter(chosen, np.int64, len(code)), begin, end


def nanoseconds(columns: Columns, stream: Integers) -> tuple[Integers, Integers]:
    """[N] begin and end of every slice; where rounding made two of a stream cross by a nanosecond, they touch."""
    begin, end = (np.rint(columns[name] * 1e9).astype(np.int64) for name in ("begin_mean", "end_mean"))
    order = np.lexsort((end, begin, stream, columns["stage"]))
    ahead, behind = order[1:], order[:-1]
    together = (stream[ahead] == stream[behind]) & (columns["stage"][ahead] == columns["stage"][behind])
    end[behind[together & (begin[ahead] == end[behind] - 1)]] -= 1
    return begin, np.maximum(begin, end)


def _lanes(group: Integers, begin: Integers, end: Integers) -> Integers:
    """[N] the first lane of its group that is free when the slice begins; 0 throughout where slices do not overlap."""
    lane = np.zeros(len(begin), np.int64)
    order = np.lexsort((end, begin, group))
    overlaps = (group[order][1:] == group[order][:-1]) & (begin[order][1:] < end[order][:-1])
    for crowded in np.unique(group[order][1:][overlaps]):
        free: list[int] = []
        for index in order[group[order] == crowded]:
            found = next((number for number, until in enumerate(free) if until <= begin[index]), len(free))
            free[found : found + 1] = [int(end[index])]
            lane[index] = found
    return lane


def _labels(columns: Columns, threads: list[str]) -> Iterator[str]:
    """Names and order of processes and threads."""

    def event(what: str, pid: int, tid: int, value: dict[str, Any]) -> str:
        return json.dumps({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": value}, separators=(",", ":"))

    for stage in np.unique(columns["stage"]).tolist():
        yield event("process_name", stage, 0, {"name": f"stage {stage}"})
        yield event("process_sort_index", stage, 0, {"sort_index": stage})
        for thread, name in enumerate(threads):
            yield event("thread_name", stage, thread, {"name": name})
            yield event("thread_sort_index", stage, thread, {"sort_index": thread})


def _slices(columns: Columns, thread: Integers, begin: Integers, length: Integers) -> Iterator[str]:
    table = (
        columns["stage"],
        thread,
        *divmod(begin, 1000),
        *divmod(length, 1000),
        _quoted(columns["kind"]),
        *(columns[name] for name in ("step", "microbatch", "layer", "chunk")),
        _quoted(columns["phase"]),
        columns["begin"] * 1e6,
        columns["end"] * 1e6,
        *(columns[name] for name in ("bytes_up", "bytes_out", "rows")),
        _quoted(columns["basis"]),
    )
    for first in range(0, len(begin), _PIECE):
        lists = (column[first : first + _PIECE].tolist() for column in table)
        yield ",\n".join(map(_SLICE, *lists))


def _quoted(column: NDArray[Any]) -> NDArray[Any]:
    """[N] the column's texts as JSON."""
    names, code = views.categories(column)
    return np.array([json.dumps(name) for name in names], dtype=object)[code]
