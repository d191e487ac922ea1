"""Where a file may be written: a plain file, new or old, and what a link points to; never a device or a pipe."""

from __future__ import annotations

import os
import re
from pathlib import Path

from moesim.errors import FileError


def plain_name(text: str) -> str:
    """Text as a name that a scenario and a file may have: letters, digits, "+-._" and spaces, at most 100."""
    return re.sub(r"[^\w.+ -]|^[. -]", "-", text)[:100].lstrip("-. ") or "unnamed"


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names, links followed; raises `FileError` where something else than a file stands there."""
    target = Path(path).resolve()
    if target.is_dir():
        raise FileError(f"cannot write {path}: it is a folder")
    if target.exists() and not target.is_file():
        raise FileError(f"cannot write {path}: it is no plain file")
    return target
