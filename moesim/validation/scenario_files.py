"""Scenario files that cases name instead of spelling a scenario out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.catalog.yaml_files import read_mapping

_NAMED_FILES = (
    ("model", "huggingface"),
    ("cluster", "calibration"),
    ("routing", "load", "trace"),
    ("routing", "load", "fitted"),
)


def read_scenario(path: Path) -> dict[str, Any]:
    """The mapping in a scenario file, with the files that it names beside itself named from here.

    Raises `FileError` where there is no such file, or no mapping in it.
    """
    document = read_mapping(path)
    for keys in _NAMED_FILES:
        _anchor(document, keys, path.parent)
    return document


def _anchor(document: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    node: Any = document
    for key in keys[:-1]:
        node = node.get(key) if isinstance(node, dict) else None
    name = node.get(keys[-1]) if isinstance(node, dict) else None
    if isinstance(name, str) and (folder / name).is_file():
        node[keys[-1]] = str(folder / name)
