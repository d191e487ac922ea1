"""What travels with the package: the scenario files and the dashboard, in a wheel and in a checkout alike."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from moesim.errors import FileError

_PACKAGE = Path(__file__).parent


def scenarios() -> dict[str, Path]:
    """Name -> file of every shipped scenario, by name; empty where the installation left them out."""
    folder = _folder("_scenarios", "scenarios")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def files() -> dict[str, Path]:
    """Name -> file of all that is shipped beside: scenarios, and "serving/NAME", "plans/NAME" and "sweeps/NAME"."""
    folder = _folder("_scenarios", "scenarios")
    found = sorted(folder.rglob("*.yaml")) if folder else []
    return {path.relative_to(folder or path).with_suffix("").as_posix(): path for path in found}


def named(path: Path) -> Path:
    """The shipped file that `path` names, as "olmoe-8-h100", where no file stands there; otherwise `path` itself.

    Raises `FileError` where nothing stands there and the name is nearly that of a shipped file.
    """
    if os.path.lexists(path):
        return path
    wanted, known = path.as_posix().removesuffix(".yaml"), files()
    if path.as_posix() in known:
        return known[wanted]
    near = get_close_matches(wanted[:100], known, n=3, cutoff=0.75)
    if near and not path.is_absolute():
        raise FileError(f"{path}: no such file; nearest of those that ship: {', '.join(near)}")
    return path


def app() -> Path:
    """The main file of the dashboard. Raises `FileError` where the installation left it out."""
    folder = _folder("_app", "app")
    if folder is None or not (folder / "main.py").is_file():
        raise FileError("the dashboard's files are not part of this installation: pip install 'moesim[app]'")
    return folder / "main.py"


def _folder(installed: str, beside: str) -> Path | None:
    """The folder inside the installed package, or the one beside it in a checkout."""
    found = [folder for folder in (_PACKAGE / installed, _PACKAGE.parent / beside) if folder.is_dir()]
    return found[0] if found else None
