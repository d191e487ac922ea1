"""Traces of requests: the kinds of files and columns that are read, and every mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_fixture import LLAMA, SERVED

import moesim
from moesim.errors import FileError
from moesim.scenario.loading import load_serving
from moesim.serving.trace_file import read_trace

ROWS = {"timestamp": [10.0, 11.5, 10.25], "input_tokens": [100, 200, 300], "output_tokens": [1, 2, 3]}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_trace_file_is_read_in_order_of_time(suffix: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"requests.{suffix}", pd.DataFrame(ROWS)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.assign(other="x").to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    times, prompts, outputs = read_trace(path)
    assert times.tolist() == [0.0, 0.25, 1.5]
    assert prompts.tolist() == [100, 300, 200]
    assert outputs.tolist() == [1, 3, 2]
    loaded = load_serving({**SERVED, "workload": {"kind": "serving", "arrivals": {"kind": "trace", "path": str(path)}}})
    told = moesim.simulate(loaded)
    assert told.requests["arrival"].tolist() == [0.0, 0.25, 1.5]
    assert any("3 requests, fewer than" in note for note in told.notes)


def test_a_trace_may_tell_date_and_time(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        "timestamp,input_tokens,output_tokens\n2023-11-16 18:17:03.5,10,5\n2023-11-16 18:17:04.25,20,6\n",
        encoding="utf-8",
    )
    assert read_trace(path)[0].tolist() == [0.0, 0.75]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timestamp,input_tokens\n1,2\n", ["no column output_tokens"]),
        ("timestamp,input_token,output_tokens\n1,2,3\n", ["no column input_tokens", "nearest: input_token"]),
        ("timestamp,input_tokens,output_tokens\n", ["holds 0 requests"]),
        ("timestamp,input_tokens,output_tokens\n1,2,3\n2,0,3\n", ["input_tokens, row 2", "from 1"]),
        ("timestamp,input_tokens,output_tokens\n1,2.5,3\n", ["input_tokens, row 1", "whole number"]),
        ("timestamp,input_tokens,output_tokens\n1,2,\n2,2,4\n", ["output_tokens, row 1", "empty"]),
        ("timestamp,input_tokens,output_tokens\n1,many,3\n", ["input_tokens: expected numbers"]),
        ("timestamp,input_tokens,output_tokens\nsoon,2,3\n", ["column timestamp"]),
        ("timestamp,input_tokens,output_tokens\n1,2,3\n1,2\n", ["cannot be read"]),
    ],
)
def test_a_wrong_trace_is_told_with_its_place(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as caught:
        read_trace(path)
    assert all(word in str(caught.value) for word in ("requests.csv", *words)), caught.value


def test_no_trace_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bad.jsonl").write_text('{"timestamp": 1', encoding="utf-8")
    for name in ("absent.csv", "folder.csv", "cut.parquet", "bad.jsonl", "requests.txt"):
        with pytest.raises(FileError, match=name):
            read_trace(tmp_path / name)


KNOWN = {
    "azure.csv": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805901,374,44\n"
        "2023-11-16 18:15:50.6805901,396,9\n"
    ),
    "azure-2024.csv": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,374,44\n"
        "2024-05-10 00:00:04.009930+00:00,396,9\n"
    ),
    "burst.csv": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,374,44,418,API log\n"
        "9,ChatGPT,396,9,405,Conversation log\n"
    ),
    "mooncake.jsonl": (
        '{"timestamp": 27482, "input_length": 374, "output_length": 44, "hash_ids": [46, 47]}\n'
        '{"timestamp": 31482, "input_length": 396, "output_length": 9, "hash_ids": [46, 47, 2366]}\n'
    ),
    "spaces.csv": "timestamp, input_tokens, output_tokens\n1, 374, 44\n5, 396, 9\n",
    "text.jsonl": (
        '{"timestamp": "1.5", "input_tokens": 374, "output_tokens": 44}\n'
        '{"timestamp": "5.5", "input_tokens": 396, "output_tokens": 9}\n'
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_traces_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(KNOWN[name], encoding="utf-8")
    times, prompts, outputs = read_trace(path)
    assert times.tolist() == pytest.approx([0.0, 4.0])
    assert (prompts.tolist(), outputs.tolist()) == ([374, 396], [44, 9])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "far.csv",
            "timestamp,input_tokens,output_tokens\n0,2,3\n1e300,2,3\n",
            ["timestamp, row 2", "1e+300 s is beyond"],
        ),
        ("ms.csv", "timestamp,input_tokens,output_tokens\n1700000000000,2,3\n", ["in a smaller unit?"]),
        (
            "twice.csv",
            "timestamp,timestamp,input_tokens,output_tokens\n1,1,2,3\n",
            ["timestamp is there more than once"],
        ),
        (
            "other.csv",
            "when,prompt,answer\n1,2,3\n",
            ["no column timestamp nor", "It has when, prompt, answer: rename"],
        ),
        ("escape.csv", "timestamp,input\x1b[31m_tokens,output_tokens\n1,2,3\n", ["nearest: input\ufffd[31m_tokens"]),
        (
            "inner.jsonl",
            '{"timestamp":1,"input_tokens":{"a\\u001b[2J":1},"output_tokens":4}',
            ["expected numbers, found struct"],
        ),
        ("word.jsonl", '{"timestamp":"now\\u001b[2J","input_tokens":1,"output_tokens":4}', ["column timestamp"]),
        ("clock.csv", "timestamp,input_tokens,output_tokens\n12:30:00,2,3\n", ["column timestamp"]),
        (
            "failed.csv",
            "Timestamp,Request tokens,Response tokens\n5,2,0\n",
            ["Response tokens, row 1", "a failed request has 0"],
        ),
    ],
)
def test_what_is_read_wrongly_elsewhere_is_told_here(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as caught:
        read_trace(path)
    said = str(caught.value)
    assert all(word in said for word in (name, *words)), said
    assert said.isprintable()


def test_a_column_twice_in_parquet(tmp_path: Path) -> None:
    path, one = tmp_path / "twice.parquet", pa.array([1])
    names = ["timestamp", "input_tokens", "output_tokens", "timestamp"]
    pq.write_table(pa.Table.from_arrays([one] * 4, names=names), path)
    with pytest.raises(FileError, match="timestamp is there more than once"):
        read_trace(path)


@pytest.mark.parametrize("rows", [1, 30])
def test_requests_of_one_moment_are_answered_by_both_roads(rows: int, tmp_path: Path) -> None:
    """One request, or many at once: a rate of arrivals there is none, so they are a loop that they fill."""
    path = tmp_path / "burst.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n" + rows * "7,1000,50\n", encoding="utf-8")
    work = {"kind": "serving", "arrivals": {"kind": "trace", "path": str(path)}}
    served = load_serving({**LLAMA, "workload": work}, ["cluster.gpus=1"])
    closed, drawn = moesim.estimate(served).summary, moesim.simulate(served).summary
    for name in ("request_latency_mean", "output_tokens_per_second"):
        assert drawn[name].value == pytest.approx(closed[name].value, rel=0.25), name


def test_prompts_beyond_the_models_sequence_length_are_flagged(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n0,5000,5\n1,100,5\n", encoding="utf-8")
    work = {"kind": "serving", "arrivals": {"kind": "trace", "path": str(path)}}
    long = load_serving({**SERVED, "workload": work})
    assert long.model.sequence_length == 4096
    drawn = load_serving(SERVED, ["workload.input_tokens=5000", "workload.requests=20"])
    for served, told in ((long, True), (drawn, True), (load_serving(SERVED, ["workload.requests=20"]), False)):
        for road in (moesim.estimate, moesim.simulate):
            flagged = [note for note in road(served).notes if note.startswith("warning: prompts of up to 5,000 tokens")]
            assert bool(flagged) == told
