"""The trace format: what is written is read again, mapped and alike byte by byte; what lies is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from moesim.errors import FileError, UserError
from moesim.traces.store import digest, load, save
from moesim.traces.tensors import read_tensors, write_tensors
from moesim.traces.trace import RouterTrace, TraceMeta, type_for


def trace(
    lengths: tuple[int, ...] = (5, 3), layers: int = 2, experts: int = 8, top_k: int = 2, seed: int = 0
) -> RouterTrace:
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    order = rng.random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k]
    return RouterTrace(
        experts=order.astype(type_for(experts)),
        sequence=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        domain=np.arange(len(lengths), dtype=np.int32) % 2,
        step=np.full(len(lengths), -1, np.int32),
        meta=TraceMeta(
            experts=experts, top_k=top_k, model_layers=tuple(range(layers)), domains=("code", "prose"), device="cpu"
        ),
    )


def full(**changes: object) -> RouterTrace:
    base = trace()
    weights = np.linspace(0, 1, base.experts.size, dtype=np.float16).reshape(base.experts.shape)
    ids = np.arange(base.tokens, dtype=np.int32)
    return replace(base, weights=weights, token_id=ids, position=base.position + np.int32(7), **changes)


def assert_same(left: RouterTrace, right: RouterTrace) -> None:
    assert left.meta == right.meta
    for name in ("experts", "sequence", "position", "domain", "step", "weights", "token_id"):
        one, other = getattr(left, name), getattr(right, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("original", [trace(), full(), trace((1,), 1, 300, 3), trace((4, 1, 9), 3, 254, 4)])
def test_what_is_saved_is_loaded(tmp_path: Path, original: RouterTrace) -> None:
    save(original, tmp_path / "a.safetensors")
    assert_same(original, load(tmp_path / "a.safetensors"))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    experts=st.integers(2, 400),
    layers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_trace_survives(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], experts: int, layers: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "a"
    original = trace(tuple(lengths), layers, experts, 2, seed)
    original.experts[0, 0, 1] = original.none
    save(original, path)
    assert_same(original, load(path))


def test_the_same_trace_gives_the_same_bytes_and_other_libraries_read_it(tmp_path: Path) -> None:
    save(full(), tmp_path / "a")
    save(full(), tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    tensors = load_file(tmp_path / "a")
    np.testing.assert_array_equal(tensors["experts"], full().experts)
    np.testing.assert_array_equal(tensors["starts"], [0, 5, 8])


def test_positions_are_written_only_where_they_say_something(tmp_path: Path) -> None:
    save(trace(), tmp_path / "a")
    assert set(read_tensors(tmp_path / "a").arrays) == {"starts", "domain", "step", "experts"}
    save(full(), tmp_path / "a")
    assert "position" in read_tensors(tmp_path / "a").arrays


def test_choices_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    save(full(), tmp_path / "a")
    loaded = load(tmp_path / "a")
    for array in (loaded.experts, loaded.weights):
        assert array is not None
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.flags.aligned


def test_a_loaded_trace_outlives_the_file_it_was_saved_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(trace(seed=1), path)
    first = load(path)
    save(trace(seed=2), path)
    np.testing.assert_array_equal(first.experts, trace(seed=1).experts)
    np.testing.assert_array_equal(load(path).experts, trace(seed=2).experts)


def rewritten(path: Path, change: object) -> Path:
    """A saved trace whose header was changed by `change`, its length kept up to date."""
    save(full(), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)  # type: ignore[operator]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def entry(name: str, **values: object):
    return lambda header: header[name].update(values)


def metadata(**values: object):
    return lambda header: header["__metadata__"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry("experts", shape=[1 << 62, 2, 2]), "does not take"),
        (entry("experts", shape=[8, 2, 3]), "does not take"),
        (entry("experts", shape=[-8, -2, 2]), "small lists of whole numbers"),
        (entry("experts", shape=[8.0, 2, 2]), "small lists of whole numbers"),
        (entry("experts", dtype="I8"), "is I8"),
        (entry("experts", dtype="O"), "unknown type"),
        (entry("domain", data_offsets=[0, 8]), "overlaps|leaves a gap"),
        (lambda header: header.pop("domain"), "overlaps|leaves a gap"),
        (metadata(moesim_trace="2"), "format 2; this moesim reads format 1"),
        (metadata(meta="{}"), "experts: Field required"),
        (metadata(meta="["), "header"),
        (metadata(meta=7), "not text by text"),
        (lambda header: header.pop("__metadata__"), "not a moesim trace"),
        (lambda header: header.update(more=header.pop("experts")), "no experts"),
        (lambda header: header["experts"].update(extra=1), "not described by dtype"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = rewritten(tmp_path / "a", change)
    with pytest.raises(FileError, match=message):
        load(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 40, 400, -1])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    save(full(), tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:kept])
    with pytest.raises(FileError, match=r"cut|not a file of tensors"):
        load(tmp_path / "a")


def test_a_padded_file_a_twice_named_tensor_and_a_huge_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(full(), path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FileError, match="cut or padded"):
        load(path)
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError, match="twice"):
        load(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError, match="does not begin with a header"):
        load(path)
    text = b'{"a":' + b"[" * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError, match="not valid JSON"):
        load(path)


class Bomb:
    """Leaves a trace on the disk where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps(Bomb(tmp_path / "fired")))
    with pytest.raises(FileError, match=r"is a pickle.*moesim trace import"):
        load(tmp_path / "a")
    np.savez(tmp_path / "b.npz", experts=np.zeros(3))
    with pytest.raises(FileError, match="zip archive"):
        load(tmp_path / "b.npz")
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"starts": [0, 5, 5, 8]}, "do not go up"),
        ({"starts": [0, 9]}, "do not go up"),
        ({"starts": [1, 8]}, "do not go up"),
        ({"domain": [0, 2]}, "not among the 2"),
        ({"domain": [0, -1]}, "not among the 2"),
        ({"domain": [0, 1, 1]}, "one 32-bit number a sequence"),
        ({"step": [0, -2]}, "below -1"),
        ({"experts": 8}, "beyond the 8"),
        ({"weights": np.nan}, "not a finite number"),
        ({"weights": np.inf}, "not a finite number"),
        ({"position": [-1] + [0] * 7}, "negative"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    save(full(), tmp_path / "a")
    stored = {name: array.copy() for name, array in load_file(tmp_path / "a").items()}
    for name, value in arrays.items():
        if isinstance(value, list):
            stored[name] = np.array(value, stored[name].dtype)
        else:
            stored[name][3, 1, 1] = value
    save_file(stored, tmp_path / "b", read_tensors(tmp_path / "a").metadata)
    with pytest.raises(FileError, match=message):
        load(tmp_path / "b")


def test_a_bad_trace_is_not_written(tmp_path: Path) -> None:
    base = trace()
    for bad in (
        replace(base, sequence=base.sequence[::-1].copy()),
        replace(base, domain=np.zeros(3, np.int32)),
        replace(base, experts=base.experts.astype(np.uint16)),
        replace(base, experts=base.experts[:, :1]),
    ):
        with pytest.raises(UserError):
            save(bad, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        save(trace(), tmp_path / "nowhere" / "a")
    with pytest.raises(FileError, match="no such file"):
        load(tmp_path / "nowhere")


def test_every_type_of_tensor_is_read(tmp_path: Path) -> None:
    arrays = {
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in ("f8", "i8", "u8", "f4", "i4", "u4", "f2", "i2", "u2", "i1", "u1", "?")
    }
    write_tensors(tmp_path / "a", arrays, {"x": "y"})
    found = read_tensors(tmp_path / "a")
    assert found.metadata == {"x": "y"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        np.testing.assert_array_equal(load_file(tmp_path / "a")[name], array)
