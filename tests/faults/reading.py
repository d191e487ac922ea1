"""What a reader finds in an output folder: every file that is to be seen is whole, of the old run or of the new one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load

Content = dict[str, bytes]
"""Path inside a folder -> bytes."""


def content(folder: Path) -> Content:
    """Every file of a folder, drafts and locks included."""
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def shown(found: Content) -> Content:
    """The files that a user sees: none whose name, or whose folder's, begins with a dot."""
    return {name: data for name, data in found.items() if not any(part.startswith(".") for part in name.split("/"))}


def litter(found: Content) -> list[str]:
    """Hidden files and folders that a run leaves although it ended well; a lock may stay."""
    return sorted(name for name in found.keys() - shown(found).keys() if not name.endswith(".lock"))


def torn(found: Content) -> list[str]:
    """Files that their reader cannot read to the end."""
    return [name for name, data in shown(found).items() if not _reads(name, data)]


def _reads(name: str, data: bytes) -> bool:
    read = _READERS.get(Path(name).suffix)
    if read is None:
        return False
    try:
        return read(data) is not False
    except (ValueError, pa.ArrowException, yaml.YAMLError, SafetensorError, OSError):
        return False


def _csv(data: bytes) -> bool:
    rows = list(csv.reader(io.StringIO(data.decode())))
    return data.endswith(b"\n") and len({len(row) for row in rows}) == 1


_READERS: dict[str, Callable[[bytes], object]] = {
    ".json": json.loads,
    ".parquet": lambda data: pq.read_table(pa.BufferReader(data)),
    ".safetensors": load,
    ".csv": _csv,
    ".yaml": lambda data: data.endswith(b"\n") and isinstance(yaml.safe_load(data), dict),
    ".html": lambda data: data.decode().endswith("</html>\n"),
    ".pt": lambda data: _checkpoint(data),
}


def _checkpoint(data: bytes) -> object:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def mixed(found: Content, versions: Iterable[Content], mark: str) -> list[str]:
    """Files that do not belong together: once the `mark` is there, all are of one version; before, each is of one.

    A `mark` that names no file of theirs: files are on their own.
    """
    seen, known = shown(found), [shown(version) for version in versions]
    stray = [name for name, data in seen.items() if all(version.get(name) != data for version in known)]
    if stray or mark not in seen:
        return stray
    return [] if any(seen == version for version in known) else sorted(seen)
