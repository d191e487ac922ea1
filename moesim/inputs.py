"""Which files are read: plain ones, and what a link points to; never a device or a pipe, which never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moesim.errors import FileError, shorten


def source_of(path: str | os.PathLike[str], most: int | None = None) -> Path:
    """The plain file that `path` names, of at most `most` bytes where that is given.

    Raises `FileError` where nothing stands there, or something else: a folder, a device, a pipe.
    """
    source = Path(path)
    try:
        found = source.stat()
    except FileNotFoundError as error:
        raise FileError(f"cannot read {shorten(str(path), 200)}: there is no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(f"cannot read {shorten(str(path), 200)}: {reason}") from error
    if stat.S_ISDIR(found.st_mode):
        raise FileError(f"cannot read {path}: it is a folder, expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"cannot read {path}: it is a device or a pipe, expected a plain file")
    if most is not None and found.st_size > most:
        raise FileError(f"cannot read {path}: it is larger than {_size(most)}, the most that is read")
    return source


def _size(count: int) -> str:
    return f"{count >> 20:,} MiB" if count >= 1 << 20 else f"{count:,} bytes"
