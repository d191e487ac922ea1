"""A routing profile survives its file, refuses a damaged one, and chooses which sequences to imitate."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from profile_fixture import made_up
from safetensors import safe_open
from safetensors.numpy import save_file

from moesim.errors import FileError, UnknownNameError, UserError
from moesim.routing.profile import FORMAT, MAX_FILE_BYTES, GoodnessRow, RoutingProfile, rounded_profile


def arrays(profile):
    return {field.name: getattr(profile, field.name) for field in fields(profile) if field.name != "meta"}


@pytest.mark.parametrize("directions", [0, 3])
def test_a_profile_comes_back_from_its_file(tmp_path, directions):
    row = GoodnessRow(metric="idle experts", batch=4, recorded=0.1, drawn=0.11, error=0.01, worst_layer=0.02)
    profile = made_up(directions=directions)
    profile = rounded_profile(
        replace(profile, meta=profile.meta.model_copy(update={"goodness": (row,), "name": "one"}))
    )
    profile.save(tmp_path / "one.safetensors")
    back = RoutingProfile.load(tmp_path / "one.safetensors")
    assert back.meta == profile.meta
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]
    for name, value in arrays(profile).items():
        assert np.allclose(getattr(back, name), value, atol=1e-3), name
        assert getattr(back, name).shape == value.shape


def test_a_large_profile_is_rounded_to_half_a_megabyte(tmp_path):
    profile = made_up(layers=58, experts=256, top_k=8, classes=14, directions=6, sequences=200)
    profile.save(tmp_path / "large.safetensors")
    assert (tmp_path / "large.safetensors").stat().st_size <= MAX_FILE_BYTES
    back = RoutingProfile.load(tmp_path / "large.safetensors")
    weight, stored = profile.affinity - profile.affinity.mean(axis=2, keepdims=True), back.affinity
    assert np.abs(stored - stored.mean(axis=2, keepdims=True) - weight).max() < 0.05


def test_a_profile_that_takes_too_much_is_refused(tmp_path):
    with pytest.raises(FileError, match="more than"):
        made_up(layers=58, experts=256, top_k=8, classes=64).save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def rewritten(tmp_path, change=None, header=None):
    """A good profile's file with some tensors or header entries replaced."""
    good = tmp_path / "good.safetensors"
    made_up().save(good)
    with safe_open(good, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        known = dict(file.metadata())
    tensors.update(change(tensors) if change else {})
    bad = tmp_path / "bad.safetensors"
    save_file({key: value for key, value in tensors.items() if value is not None}, bad, {**known, **(header or {})})
    return bad


DAMAGE = {
    "a table is missing": lambda tensors: {"affinity": None},
    "shapes that do not go together": lambda tensors: {"tilt": tensors["tilt"][:, :1]},
    "another number of dimensions": lambda tensors: {"repeat": tensors["repeat"][:, None]},
    "a number that is none": lambda tensors: {"affinity": tensors["affinity"] * np.float16(np.nan)},
    "a negative share": lambda tensors: {"share": -tensors["share"]},
    "a negative repeat": lambda tensors: {"repeat": tensors["repeat"] - np.float16(9)},
    "an unnamed domain": lambda tensors: {"domain": tensors["domain"] + np.int32(7)},
    "a sequence without a class": lambda tensors: {"share": tensors["share"] * np.float16(0)},
    "a layer without experts": lambda tensors: {"width": tensors["width"] * np.float16(0)},
    "a class that never ends": lambda tensors: {"stay": tensors["stay"] * np.float16(0) + np.float16(2)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path, damage):
    with pytest.raises(FileError, match="damaged"):
        RoutingProfile.load(rewritten(tmp_path, DAMAGE[damage]))


@pytest.mark.parametrize("text", ["{}", "not json", "[]"])
def test_a_wrong_header_is_refused(tmp_path, text):
    with pytest.raises(FileError, match="damaged"):
        RoutingProfile.load(rewritten(tmp_path, header={FORMAT: text}))


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"affinity": np.zeros(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match="no routing profile"):
        RoutingProfile.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("content", [b"", b"x", b"\x10\0\0\0\0\0\0\0{}", bytes(600_000)])
def test_what_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError):
        RoutingProfile.load(path)


def test_a_missing_file_or_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(FileError):
        RoutingProfile.load(tmp_path / "none.safetensors")
    with pytest.raises(FileError):
        made_up().save(tmp_path / "none" / "one.safetensors")


def test_domains_are_mixed_by_their_shares():
    profile = made_up(sequences=30, domains=3)
    chance = profile.chosen({"domain 0": 3.0, "domain 2": 1.0}, None)
    shares = np.bincount(profile.domain, weights=chance)
    assert np.allclose(shares, [0.75, 0.0, 0.25])
    assert np.allclose(profile.chosen({}, None), profile.length / profile.length.sum())
    with pytest.raises(UnknownNameError, match="domain 9"):
        profile.chosen({"domain 9": 1.0}, None)
    with pytest.raises(UserError, match="nothing"):
        profile.chosen({"domain 0": 0.0}, None)


def test_moments_are_thirds_of_the_recorded_steps():
    profile = replace(made_up(sequences=14), step=np.repeat([1, 2, 5, 9, 10, 11, 30], 2).astype(np.int32))
    for moment, steps in (("early", {1, 2, 5}), ("middle", {9, 10}), ("late", {11, 30}), (None, {11, 30})):
        assert set(profile.step[profile.chosen({}, moment) > 0]) == steps
    with pytest.raises(UserError, match="late"):
        profile.chosen({}, "lates")
    with pytest.raises(UserError, match="steps of training"):
        made_up().chosen({}, "early")


def test_inclusion_adds_up_to_the_experts_of_a_token():
    profile = made_up(top_k=3, repeat=5.0)
    chance = profile.inclusion()
    assert chance.shape == (24, 2, 16)
    assert np.allclose(chance.sum(axis=2), 3.0, rtol=1e-4)
    assert ((chance >= 0.0) & (chance <= 1.0)).all()
    (low, high), own = profile.simple_law()
    assert 0.0 < low <= high
    assert own > 0.3
