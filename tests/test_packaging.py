"""What travels with the package, what it says that it needs, and that the smoke test of the wheel can fail."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import moesim
from moesim import cli, errors, listing, shipped

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {"torch", "dask", "distributed", "streamlit", "moesim"}


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    """The gate's script, as a module."""
    spec = importlib.util.spec_from_file_location("wheel", ROOT / ".ci" / "wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_shipped_file_has_a_name() -> None:
    files = sorted((ROOT / "scenarios").rglob("*.yaml"))
    assert list(shipped.files().values()) == files
    assert {"olmoe-8-h100", "glam-1.2t-1024-tpu-v4", "serving/gpt-oss-120b-8-h100"} <= set(shipped.files())
    assert {row["name"] for row in listing.entries("scenarios")} == set(shipped.files())
    with pytest.raises(errors.UserError, match="nearest: olmoe-8-h100"):
        listing.entry("scenarios", "olmo-8-h100")


def test_a_shipped_scenario_goes_by_its_name_anywhere_and_the_users_own_file_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert moesim.load("olmoe-8-h100") == moesim.load(ROOT / "scenarios" / "olmoe-8-h100.yaml")
    assert moesim.load("serving/gpt-oss-120b-8-h100").name == "gpt-oss-120b-8-h100"
    monkeypatch.setattr(sys, "argv", ["moesim", "check", "olmoe-8-h100"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert "no problems" in capsys.readouterr().out
    Path("olmoe-8-h100").write_bytes((ROOT / "scenarios" / "mixtral-8x7b-64-h100.yaml").read_bytes())
    assert moesim.load("olmoe-8-h100").model.name == "mixtral-8x7b"
    with pytest.raises(errors.FileError, match=r"scenarios/olmoe-8-h100: no such file"):
        moesim.load("scenarios/olmoe-8-h100")


def test_a_shipped_sweep_and_plan_go_by_their_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = moesim.sweep("sweeps/capacity-mixtral-64-h100", workers=0)
    assert found.counts["done"] == len(found.points)
    asked: list[Path] = []
    monkeypatch.setattr(cli.plan_cli, "_answered", lambda file, *rest: asked.append(file) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["moesim", "plan", "plans/gpt-oss-120b-serving-20-per-s"])
    with pytest.raises(SystemExit):
        cli.main()
    assert asked == [ROOT / "scenarios" / "plans" / "gpt-oss-120b-serving-20-per-s.yaml"]


def test_what_the_package_imports_it_requires() -> None:
    """Outside the doors of the extras, nothing that is only there by chance."""
    owners = packages_distributions()
    required = {Requirement(text).name.lower() for text in PROJECT["dependencies"]}
    used = {}
    for path in (ROOT / "moesim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            used |= {name.partition(".")[0]: path for name in names}
    foreign = {name: path for name, path in used.items() if name not in sys.stdlib_module_names | OPTIONAL}
    missing = {name: path for name, path in foreign.items() if not {o.lower() for o in owners[name]} & required}
    assert not missing
    assert len(foreign) > 10


def test_the_gate_builds_and_uses_the_wheel() -> None:
    assert ".ci/wheel.py" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    versions = [version for text in PROJECT["classifiers"] if (version := text.rpartition(":: ")[2]).startswith("3.")]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_a_wheel_without_a_trace_or_the_dashboard_is_refused(smoke: ModuleType, tmp_path: Path) -> None:
    places = {"moesim": "moesim", "app": "moesim/_app", "scenarios": "moesim/_scenarios"}
    files = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in smoke.KINDS or path.name == "py.typed"
    }
    whole = written(tmp_path / "whole.whl", files)
    smoke.check_contents(whole)
    for lost in ("moesim/catalog/data/traces/cpu-small-switch-top-1.safetensors", "moesim/_app/.streamlit/config.toml"):
        assert lost in files
        with pytest.raises(SystemExit, match=re.escape(Path(lost).name)):
            smoke.check_contents(written(tmp_path / "cut.whl", files - {lost}))


def written(path: Path, names: set[str]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, "")
    return path


def test_the_smoke_tests_environment_holds_what_is_required_and_no_more(smoke: ModuleType, tmp_path: Path) -> None:
    smoke.link(["pandas>=2.2"], tmp_path)
    there = {path.name for path in tmp_path.iterdir()}
    assert {"pandas", "numpy", "dateutil"} <= there
    assert not {"pyarrow", "streamlit", "pytest", "moesim"} & there


def test_the_pinned_releases_are_whole_releases_within_the_stated_bounds() -> None:
    lines = (ROOT / ".ci" / "pins.txt").read_text(encoding="utf-8").splitlines()
    stated = [line for line in lines if not line.startswith("#")]
    pins = dict(line.split("==") for line in stated)
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(text for name in ("app", "trace", "dask") for text in extras[name])]
    assert len(wanted) >= 17
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert stated == sorted(stated)
