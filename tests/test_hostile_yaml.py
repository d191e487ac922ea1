"""Hostile YAML and JSON at every door that reads them: refused in a line, quickly, in little memory, none of it run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hostile_fixture import assert_refused, assert_shown, run

SOUND = """\
model: olmoe-1b-7b
cluster: {gpu: h100-sxm, gpus: 8}
parallelism: {expert: 8}
workload: {sequence_length: 4096, global_batch: 64, micro_batch: 1}
"""
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n  k{n}: *a{n - 1}\n" for n in range(1, 12)
)
FILES: dict[str, tuple[str | bytes, str]] = {
    "a billion laughs": (LAUGHS, "holds more than 100,000 values"),
    "laughs that merge": (MERGED, "holds more than 100,000 values"),
    "a list in itself": ("a: &a [*a]\n", "refers to nothing above it"),
    "10,000 lists": ("a: " + "[" * 10_000 + "]" * 10_000, "nested deeper than 40 levels"),
    "10,000 mappings": ("a: " + "{a: " * 10_000 + "}" * 10_000, "nested deeper than 40 levels"),
    "10,000 dashes": ("a:\n" + "- " * 10_000 + "x", "nested deeper than 40 levels"),
    "a call": ("model: !!python/object/apply:os.system [touch ran]\n", "the tag 'python/object/apply:os.system'"),
    "a name": ("model: !!python/name:os.system\n", "the tag 'python/name:os.system'"),
    "an object": ("!!python/object:os.system {}\n", "the tag 'python/object:os.system'"),
    "20,000 digits": (SOUND + f"simulation: {{seed: {'9' * 20_000}}}\n", "longer than the 100 characters of a number"),
    "hexadecimals": (SOUND + f"simulation: {{seed: 0x{'f' * 5_000}}}\n", "longer than the 100 characters of a number"),
    "base 60": (SOUND + f"simulation: {{seed: 1{':59' * 300_000}}}\n", "longer than the 100 characters of a number"),
    "base 60, broken": (SOUND + f"prices: {{gpu_hour: 1{':59' * 300_000}.5}}\n", "longer than the 100 characters"),
    "beyond a float": (SOUND + "prices: {gpu_hour: 1e999}\n", "expected a finite quantity"),
    "100 digits": (SOUND.replace("gpus: 8", f"gpus: {'9' * 99}"), "cluster.gpus: must be at most"),
    "a unit of digits": (SOUND + f"prices: {{gpu_hour: {'9' * 100_000} GB}}\n", "expected a quantity"),
    "a zero byte": (b"model: a\0b\n", "control characters are not allowed"),
    "all bytes": (bytes(range(256)) * 10, "is not UTF-8 text"),
    "a pickle": (pickle.dumps({"model": 1}), "is not UTF-8 text"),
    "an archive": (b"PK\x03\x04" + bytes(100), "control characters are not allowed"),
    "a key that colours": (SOUND + '"\\e[31mred\\e]0;x\\a": 1\n', "\ufffd[31mred\ufffd]0;x\ufffd: unknown key"),
    "a name that colours": (SOUND + 'name: "\\e[31mred"\n', "name: may hold letters"),
    "a model that colours": (SOUND.replace("olmoe-1b-7b", '"\\e[31m\\x9b0m\\u202e"'), "unknown model"),
    "a model of lines": (SOUND.replace("olmoe-1b-7b", '"a\\nmoesim: done"'), "unknown model"),
    "20,000 keys": ("".join(f"k{n}: 1\n" for n in range(20_000)), "and 950 more"),
    "a name outside": (SOUND + "name: ../../outside\n", "name: may hold letters"),
    "a folder beside": (SOUND.replace("olmoe-1b-7b", "{huggingface: ..}"), "is a folder"),
    "a device": (SOUND.replace("olmoe-1b-7b", "{huggingface: /dev/zero}"), "is not a regular file"),
    "an address": (SOUND.replace("olmoe-1b-7b", "{huggingface: 'file:///etc/passwd'}"), "no such file"),
    "a far address": (SOUND.replace("olmoe-1b-7b", "{huggingface: 'http://127.0.0.1:9/x'}"), "no such file"),
    "a file of lines": (
        SOUND.replace("olmoe-1b-7b", '{huggingface: "a\\nb\\e[31m"}'),
        "a\ufffdb\ufffd[31m: no such file",
    ),
    "a pipe as calibration": (SOUND.replace("gpus: 8", "gpus: 8, calibration: pipe"), "no file pipe"),
    "a pipe as trace": (SOUND + "routing: {load: {trace: pipe}}\n", "unknown trace 'pipe'"),
    "a device as trace": (SOUND + "routing: {load: {trace: /dev/zero}}\n", "no such file"),
    "a device as profile": (SOUND + "routing: {load: {fitted: /dev/zero}}\n", "no such file"),
    "a pipe as plan": (SOUND + "placement: {planned_from: pipe}\n", "it is a device or a pipe"),
    "a device as plan": (SOUND + "placement: {planned_from: /dev/zero}\n", "it is a device or a pipe"),
}
EVERYWHERE = ("a billion laughs", "base 60")
DOORS = {
    "estimate": ["estimate", "file"],
    "compare": ["compare", "file", "file"],
    "plan": ["plan", "file"],
    "plan --serve": ["plan", "--serve", "file"],
    "sweep": ["sweep", "file"],
    "sweep of": ["sweep", "sweep.yaml"],
    "sensitivity": ["sensitivity", "file"],
    "validate": ["validate", "file"],
    "trace evolve": ["trace", "evolve", "file"],
    "rebalance": ["rebalance", "file"],
    "calibration": ["show", "sound.yaml", "--set", "cluster.calibration=file"],
    "model of Hugging Face": ["show", "sound.yaml", "--set", "model={huggingface: file}"],
    "catalog": ["catalog", "gpus"],
}
CHANGES = {
    "laughs": ("workload.micro_batch=" + "[" * 3000, "nested deeper than 40 levels"),
    "a tag": ("model=!!python/object/apply:os.system [touch ran]", "is not read, only plain data"),
    "base 60": ("simulation.seed=1" + ":59" * 30_000, "longer than the 100 characters"),
    "beyond a float": ("prices.gpu_hour=1e999", "expected a finite quantity"),
    "colours": ("mo\x1b[31mdel=1", "unknown key"),
    "another document": ("name=x\n---\nmodel: y", "a second document starts here"),
    "deep": (".".join("a" * 500) + "=1", "is not of the form a.b=value"),
    "a long key": ("k" * 100_000 + "=1", "unknown key"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a sound scenario, a sweep of `file`, and a pipe that nobody writes to."""
    (tmp_path / "sound.yaml").write_text(SOUND)
    (tmp_path / "sweep.yaml").write_text("scenario: file\ngrid: {cluster.gpus: [8, 16]}\n")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("file", FILES)
def test_a_scenario_that_harms_is_refused(file: str, place: Path) -> None:
    content, said = FILES[file]
    write(place / "file", content)
    assert_refused(run(place, "show", "file"), said, memory=100 << 20)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("file", EVERYWHERE)
@pytest.mark.parametrize("door", DOORS)
def test_so_is_one_at_every_other_door(door: str, file: str, place: Path) -> None:
    write(place / "file", FILES[file][0])
    env = {}
    if door == "catalog":
        (place / "overlay").mkdir()
        write(place / "overlay" / "gpus.yaml", FILES[file][0])
        env = {"MOESIM_CATALOG": str(place / "overlay")}
    assert_refused(run(place, *DOORS[door], **env), memory=100 << 20)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_harms_is_refused(change: str, place: Path) -> None:
    text, said = CHANGES[change]
    assert_refused(run(place, "show", "sound.yaml", "--set", text), said, memory=100 << 20)
    assert not (place / "ran").exists()


@pytest.mark.parametrize(
    "name", ["pipe", "/dev/zero", "..", "link", "circle", "no\nmoesim: ok\x1b[2J", "file:///etc/hosts"]
)
def test_what_is_no_plain_file_is_refused(name: str, place: Path) -> None:
    (place / "link").symlink_to("/dev/zero")
    (place / "circle").symlink_to("circle")
    for door in (["show"], ["validate"]) if name != "pipe" else (["show"], ["plan"], ["sweep"], ["validate"]):
        assert_refused(run(place, *door, name), memory=100 << 20)


def test_a_large_file_is_refused_unread(place: Path) -> None:
    with (place / "file").open("wb") as file:
        file.truncate(1 << 40)
    assert_refused(run(place, "show", "file"), "larger than 2 MiB", memory=100 << 20)
    assert_refused(run(place, "validate", "file"), "larger than 64 MiB", memory=200 << 20)


def test_keys_given_twice_are_found_quickly(place: Path) -> None:
    keys = ",".join(f'"k{n}":1' for n in range(300_000))
    write(place / "file", f'- {{{keys},"z":1,"z":2}}\n')
    assert_refused(run(place, "validate", "file"), "the key 'z' is given twice")


def test_text_of_a_file_reaches_the_terminal_harmless(place: Path) -> None:
    """A scenario that is read, and printed: in tables, as YAML and as JSON."""
    evil = '"\\e[31m\\e]0;title\\a\\x9b2J\\u202e[bold]x[/bold]"'
    write(place / "file", SOUND + f"question: {evil}\n")
    for words in (["show", "file"], ["show", "file", "--json"], ["estimate", "file"], ["compare", "file", "file"]):
        told = run(place, *words)
        assert told.code == 0, told.err
        assert_shown(told)
