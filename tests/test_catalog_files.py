"""Where the catalog looks: the package's files once, the user's folder at every question."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim import catalog

FABRIC = "{base: rail-optimized-400g, nic_bandwidth: %s Gb/s}\n"


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, str(tmp_path))
    return tmp_path


def test_files_that_come_and_go_in_the_users_folder_are_seen(overlay: Path) -> None:
    packaged = catalog.names("fabrics")
    (overlay / "fabrics").mkdir()
    added = overlay / "fabrics" / "mine.yaml"
    added.write_text(f"mine: {FABRIC % 100}")
    assert set(catalog.names("fabrics")) == {*packaged, "mine"}
    assert catalog.load("fabrics", "mine").nic_bandwidth == 12.5e9
    (overlay / "fabrics.yaml").write_text(f"also-mine: {FABRIC % 200}")
    assert catalog.load("fabrics", "also-mine").nic_bandwidth == 25e9
    added.unlink()
    assert set(catalog.names("fabrics")) == {*packaged, "also-mine"}


def test_another_folder_takes_the_place_of_the_first(
    overlay: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (overlay / "fabrics.yaml").write_text(f"mine: {FABRIC % 100}")
    other = tmp_path_factory.mktemp("other")
    (other / "fabrics.yaml").write_text(f"mine: {FABRIC % 800}")
    assert catalog.load("fabrics", "mine").nic_bandwidth == 12.5e9
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, str(other))
    assert catalog.load("fabrics", "mine").nic_bandwidth == 100e9
    monkeypatch.delenv(catalog.OVERLAY_VARIABLE)
    assert "mine" not in catalog.names("fabrics")


def test_the_packages_own_folder_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalog.names("gpus"), catalog.kinds()

    def looked(*_: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.delenv(catalog.OVERLAY_VARIABLE, raising=False)
    monkeypatch.setattr(Path, "glob", looked)
    assert (catalog.names("gpus"), catalog.kinds()) == known
