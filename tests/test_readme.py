"""What the README shows is true: its Python runs, its commands exist, its tables list what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import moesim

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str, language: str) -> str:
    """The first fenced block of a language after an HTML comment."""
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", "python"), "README.md", "exec"), {})
    told = capsys.readouterr().out
    assert " s, " in told
    assert "is " in told
    assert (tmp_path / "out" / "olmoe" / "result.json").exists()


def test_the_commands_do_all_their_set_up() -> None:
    for marker in ("main job", "tests"):
        command = block(marker, "sh")
        assert "-m venv .venv" in command
        assert "pip install" in command
    assert "moesim simulate scenarios/" in block("main job", "sh")


def test_every_scenario_is_listed_with_its_question() -> None:
    for path in sorted((ROOT / "scenarios").glob("*.yaml")):
        question = yaml.safe_load(path.read_text(encoding="utf-8"))["question"]
        assert f"| `{path.stem}` | {question} |" in README


def test_the_scenario_shown_is_the_one_shipped() -> None:
    assert (ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml").read_text(encoding="utf-8") in README


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@", README)


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file()


def test_the_version_is_one() -> None:
    assert f'version = "{moesim.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
