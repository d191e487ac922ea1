"""Modules of the package that no mutant of a room can change: those that neither are of the room nor import it."""

from __future__ import annotations

import ast
from pathlib import Path

LATE = ("torch", "dask", "_app", "measurement", "cli", "__main__")
"""Parts of names of modules that want packages which may be missing, or that no test of a room needs."""


def untouched(root: Path, sources: list[str]) -> list[str]:
    """Names of these modules, so that a parent process can import them once for all mutants."""
    paths = {_name(path.relative_to(root)): path for path in (root / "moesim").rglob("*.py")}
    needs = {name: _needs(name, path) & paths.keys() for name, path in paths.items()}
    reached = {_name(Path(source)) for source in sources}
    while found := {name for name, others in needs.items() if name not in reached and others & reached}:
        reached |= found
    return sorted(name for name in paths if name not in reached and not any(word in name for word in LATE))


def _name(path: Path) -> str:
    return path.as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _needs(name: str, path: Path) -> set[str]:
    """Modules that a file imports anywhere, with the packages that hold them and it."""
    found = {name.rpartition(".")[0]}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(one.split(".")[:end]) for one in found for end in range(2, one.count(".") + 2)}
