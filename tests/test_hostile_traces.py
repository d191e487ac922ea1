"""Hostile recordings at the door of every importer: refused in a line, in little memory; no pickle is ever obeyed."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_fixture import assert_refused, run

Content = bytes | Callable[[Path], object]
MANY = (1 << 31) - 1
META = {"moesim_trace": "1", "meta": json.dumps({"experts": 4, "top_k": 1, "model_layers": []})}
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")


class Calls:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def npy(shape: str, type_: object = "<i4", version: int = 1) -> bytes:
    text = f"{{'descr': {type_!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def tensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(type_: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": type_, "shape": shape, "data_offsets": [begin, end]}


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return held.getvalue()


def torch_file(pickled: bytes) -> bytes:
    return archive({"x/data.pkl": pickled, "x/version": b"3\n"}, zipfile.ZIP_STORED)


def header_of_gigabytes(path: Path) -> None:
    """A header of four gigabytes of nothing: a file with a hole takes no place on the disk."""
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + (0xFFFFFFF0).to_bytes(4, "little"))
        file.truncate(4 << 30)


def twice(first: bytes, each: Callable[[bytes, int], bytes], levels: int) -> bytes:
    """A pickle in which each object holds the one before it two times."""
    return b"".join([first + b"q\x00", *(each(bytes([n - 1]), n) + b"q" + bytes([n]) for n in range(1, levels))])


LISTS = twice(b"](K\x01K\x02e", lambda before, _: b"](h" + before + b"h" + before + b"e", 40)
TUPLES = twice(b")", lambda before, _: b"h" + before + b"h" + before + b"\x86", 60)
EMPTY = {
    "__metadata__": META,
    "starts": one("I64", [2], 0, 16),
    "domain": one("I32", [1], 16, 20),
    "step": one("I32", [1], 20, 24),
    "experts": one("U8", [MANY, 0, 1], 24, 24),
}
TEXTS = b'["' + b"a" * 1_000_000 + b'"' + b',""' * 100_000 + b"]"
COLUMNS = b"token,layer,experts\n"
FILES: dict[str, tuple[str, Content, str]] = {
    "pickle": ("a.pkl", pickle.dumps(Calls()), "it is a pickle"),
    "pickle called CSV": ("a.csv", pickle.dumps(Calls()), "it is a pickle"),
    "pickle called JSON": ("a.json", pickle.dumps(Calls()), "it is a pickle"),
    "pickle of text": ("a.txt", b"cos\nsystem\n(S'touch ran'\ntR.", "the known formats are"),
    "objects": ("a.npy", npy("(1,)", "|O") + pickle.dumps([Calls()]), "it holds object, not numbers"),
    "archived objects": ("a.npz", archive({"experts.npy": npy("(1,)", "|O") + pickle.dumps([Calls()])}), "not numbers"),
    "records": ("a.npy", npy("(1,)", [("a", "<i4")]) + bytes(4), "not numbers"),
    "a shape below zero": ("a.npy", npy("(-1, -3)") + bytes(12), "negative dimensions"),
    "a shape without end": ("a.npy", npy("(9223372036854775807, 9223372036854775807)") + bytes(12), "and holds 12"),
    "a shape of digits": ("a.npy", npy(f"({'9' * 5000},)"), "not one that numpy writes"),
    "a shape that calls": ("a.npy", npy("(__import__('os').system('touch ran'),)"), "not one that numpy writes"),
    "a shape of signs": ("a.npy", npy("-" * 9000 + "1"), "not one that numpy writes"),
    "a header of gigabytes": ("a.npy", header_of_gigabytes, "longer than 10,000 bytes"),
    "names outside": ("a.npz", archive({"../../out.npy": npy("(3,)") + bytes(12)}), "no key experts"),
    "names that colour": ("a.npz", archive({"\x1b[31m.npy": npy("(3,)") + bytes(12)}), "only \ufffd[31m"),
    "a bomb": (
        "a.npz",
        archive({"experts.npy": npy("(1048576, 16, 8)", "|u1") + bytes(128 << 20)}),
        "it would grow to",
    ),
    "another compression": ("a.npz", archive({"experts.npy": npy("(3,)")}, zipfile.ZIP_LZMA), "as numpy does not"),
    "a workbook": ("a.xlsx", archive({"[Content_Types].xml": b"<x/>"}), "an archive of other files"),
    "gzip": ("a.json.gz", gzip.compress(b'{"a": 1}\n' * 100_000), "packed by gzip"),
    "a header of 2^63": ("a.safetensors", tensors(b"{}", length=1 << 63), "the known formats are"),
    "a cut header": ("a.safetensors", tensors({}, length=900_000), "is cut"),
    "tensors that overlap": (
        "a.safetensors",
        tensors({"a": one("I32", [1], 0, 4), "b": one("I32", [1], 2, 6)}, bytes(6)),
        "overlaps another",
    ),
    "a type of objects": ("a.safetensors", tensors({"a": one("O", [1], 0, 4)}, bytes(4)), "unknown type O"),
    "another type": ("a.safetensors", tensors({"a": one("I64", [1], 0, 4)}, bytes(4)), "does not take"),
    "a shape that overflows": (
        "a.safetensors",
        tensors({"a": one("I32", [1 << 63, 1 << 63], 0, 8)}, bytes(8)),
        "does not take",
    ),
    "an empty shape": (
        "a.safetensors",
        tensors({"a": one("I32", [1 << 62, 0, 1 << 62], 0, 0)}),
        "larger than any file",
    ),
    "tokens without layers": (
        "a.safetensors",
        tensors(EMPTY, struct.pack("<qq", 0, MANY) + bytes(8)),
        "no layers or no choices",
    ),
    "a header of digits": ("a.safetensors", tensors(b'{"a":{"shape":[' + b"9" * 10_000 + b"]}}"), "not valid JSON"),
    "a header of brackets": (
        "a.safetensors",
        tensors(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        "not valid JSON",
    ),
    "metadata of brackets": (
        "a.safetensors",
        tensors({"__metadata__": {"moesim_trace": "1", "meta": "[" * 100_000}}),
        "Invalid JSON",
    ),
    "a version that colours": (
        "a.safetensors",
        tensors({"__metadata__": {"moesim_trace": "\x1b[31m"}}),
        "format \ufffd[31m",
    ),
    "100,000 brackets": ("a.json", b"[" * 100_000, "the known formats are"),
    "100,000 braces": ("a.json", b'{"a":' * 100_000, "the known formats are"),
    "ignored brackets": (
        "a.jsonl",
        b'{"layer":0,"topk_ids":[0]}\n{"layer":0,"topk_ids":[0],"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}\n",
        "alike",
    ),
    "brackets of choices": (
        "a.jsonl",
        b'{"layer":0,"topk_ids":[0]}\n{"layer":0,"topk_ids":' + b"[" * 500_000 + b"]" * 500_000 + b"}\n",
        "cannot read",
    ),
    "texts for choices": ("a.jsonl", b'{"routed_experts":' + TEXTS + b"}\n", "not whole numbers"),
    "texts for counts": ("a.json", b'{"m/expert_counts/a":' + TEXTS + b"}", "not whole numbers"),
    "texts for logical counts": ("a.json", b'{"logical_count":' + TEXTS + b"}", "not whole numbers"),
    "counts beyond floats": ("a.json", b'{"m/expert_counts/a":[[1e999]]}', "not whole numbers"),
    "counts of 90 axes": (
        "a.json",
        b'{"m/expert_counts/a":' + b"[" * 90 + b"1" + b"]" * 90 + b"}",
        "a number is out of range",
    ),
    "choices of 20 digits": ("a.jsonl", b'{"routed_experts":[[[99999999999999999999]]]}\n', "out of range"),
    "a tree of gigabytes": ("a.json", b'{"logical_count":[' + b"[]," * 15_000_000 + b"[]]}", "the known formats are"),
    "an endless line": ("a.csv", COLUMNS + b"1," * 10_000_000, "cannot read"),
    "endless choices": ("a.csv", COLUMNS + b"1,0," + b"1 " * 4_000_000, "at most 512 are read"),
    "one long row": (
        "a.csv",
        COLUMNS + b"1,0," + b" ".join(b"%d" % n for n in range(512)) + b"\n" + b"1,0,1\n" * 400_000,
        "filled up to one length",
    ),
    "layers far apart": (
        "a.csv",
        COLUMNS + b"".join(b"%d,%d,1\n" % (n, n % 9999) for n in range(20_000)),
        "cannot read",
    ),
    "an open quote": ("a.csv", COLUMNS + b'1,0,"' + b"1 \n" * 1_000_000, "cannot read"),
}
TORCH: dict[str, tuple[bytes, str]] = {
    "a call": (torch_file(pickle.dumps(Calls(), protocol=2)), "could run code"),
    "a call of another protocol": (torch_file(pickle.dumps(Calls())), "could run code"),
    "an old file": (pickle.dumps(Calls(), protocol=2), "it is a pickle, or a torch file from before"),
    "laughs": (torch_file(b"\x80\x02" + LISTS + b"."), "would grow to more than"),
    "a key of laughs": (torch_file(b"\x80\x02}(" + TUPLES + b"K\x01u."), "would grow to more than"),
    "a list in itself": (torch_file(b"\x80\x02]q\x00h\x00a."), "it holds itself"),
    "a cut pickle": (torch_file(b"\x80\x02]q\x00(K\x01"), "exhausted"),
    "a text of exabytes": (torch_file(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00abc."), "its pickle"),
    "20,000 lists": (torch_file(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."), "nested too deeply"),
    "a pickle that grows": (archive({"x/data.pkl": b"\x80\x02" + b"0" * 10_000_000}), "more than the file has"),
}


def put(folder: Path, name: str, content: Content) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        content(folder / name)


@pytest.mark.parametrize("file", FILES)
def test_a_recording_that_harms_is_refused(file: str, tmp_path: Path) -> None:
    name, content, said = FILES[file]
    put(tmp_path, name, content)
    assert_refused(run(tmp_path, "trace", "import", name, "--out", "out.safetensors"), said, memory=500 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {name}


@needs_torch
@pytest.mark.parametrize("file", TORCH)
def test_a_torch_file_that_harms_is_refused(file: str, tmp_path: Path) -> None:
    content, said = TORCH[file]
    put(tmp_path, "a.pt", content)
    assert_refused(run(tmp_path, "trace", "import", "a.pt", torch=True), said, memory=500 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt"}


@needs_torch
def test_tensors_that_share_what_is_stored_are_counted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    held = torch.zeros(2 << 20, dtype=torch.bfloat16)
    torch.save([held.view(2, -1).t() for _ in range(400)], tmp_path / "a.pt")
    assert_refused(run(tmp_path, "trace", "import", "a.pt", torch=True), "repeat what is stored", memory=1 << 30)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "link", "circle", "no\nsuch\x1b[2J", "folder"])
def test_what_is_no_plain_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "meta_info.json")
    os.mkfifo(tmp_path / "folder" / "rank0.safetensors")
    doors = [["trace", "import"]] + [["trace", "inspect"], ["trace", "fit"], ["place", "--ranks", "4"]] * (
        name == "pipe"
    )
    for door in doors:
        assert_refused(run(tmp_path, *door, name), memory=100 << 20)


def test_a_profile_that_harms_is_refused(tmp_path: Path) -> None:
    """Fitted profiles have a reader of their own."""
    files = {
        "pickle": (pickle.dumps(Calls()), "is no safetensors file"),
        "length": (tensors(b"{}", length=1 << 63), "is no safetensors file"),
        "shape": (tensors({"a": one("F16", [1 << 62, 4], 0, 8)}, bytes(8)), "is no safetensors file"),
        "meta": (tensors({"__metadata__": {"moesim_routing_profile": "[" * 50_000}}), "profile"),
        "large": (bytes(600_000), "larger than 500000 bytes"),
    }
    scenario = (
        "model: olmoe-1b-7b\ncluster: {gpu: h100-sxm, gpus: 8}\nworkload: {sequence_length: 4096, global_batch: 64}\n"
    )
    for name, (content, said) in files.items():
        (tmp_path / "a.safetensors").write_bytes(content)
        (tmp_path / "s.yaml").write_text(scenario + "routing: {load: {fitted: a.safetensors}}\n")
        assert_refused(run(tmp_path, "show", "s.yaml"), said, memory=100 << 20), name
