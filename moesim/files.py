"""Files that appear whole or not at all, where a file may be written, and who writes in a folder meanwhile.

What is under way stands in a draft folder beside its place, `.moesim-*`, which a lock of the operating system holds as
long as its process lives. kill -9 leaves it behind; the next one who writes there clears away every draft that nobody
holds. A file system without such locks works too: then nothing is cleared away, and nobody waits.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from moesim.errors import FileError, UserError

DRAFT, LOCK = ".moesim-", ".lock"
PATIENCE = 60.0
"""Seconds that one waits for another who moves files into the same folder, which takes milliseconds."""
_PAUSE, _TRIES = 0.01, 10


def plain_name(text: str) -> str:
    """Text as a name that a scenario and a file may have: letters, digits, "+-._" and spaces, at most 100."""
    return re.sub(r"[^\w.+ -]|^[. -]", "-", text)[:100].lstrip("-. ") or "unnamed"


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names, links followed; raises `FileError` where something else than a file stands there."""
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise FileError(f"cannot write {path}: it is a folder")
        if target.exists() and not target.is_file():
            raise FileError(f"cannot write {path}: it is no plain file")
    except (OSError, RuntimeError) as error:  # links in a circle
        raise FileError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return target


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[BinaryIO]:
    """A file that appears at `path`, links followed, once it is written whole; what stood there stays until then.

    `durable` outlives a power cut. Raises `FileError` where it cannot be written or the disk is full.
    """
    target = target_of(path)
    try:
        with draft_folder(target.parent) as place:
            draft = place / "draft"
            with draft.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(draft, target)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


def write_whole(path: str | os.PathLike[str], content: str | bytes, *, durable: bool = False) -> None:
    """Writes the file as `whole_file` does; text as UTF-8, its line ends as they are."""
    with whole_file(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_target(path: str | os.PathLike[str], what: str = "", suffixes: Sequence[str] = ()) -> Path:
    """`path`; raises `FileError` where `whole_file` could not write there, and leaves no trace. To be asked before long
    work. `what` has to end in one of `suffixes` where any are named: else a `UserError`."""
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise UserError(f"cannot write {path}: {what} ends in {' or '.join(suffixes)}")
    target = target_of(path)
    try:
        with draft_folder(target.parent):
            return Path(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder` for files under way; removed afterwards, whatever happened. Raises `OSError`."""
    _clear_drafts(folder)
    place, lock = _held_draft(folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _held_draft(folder: Path) -> tuple[Path, int]:
    """A draft folder and its lock; another process may clear the folder away before the lock is there."""
    for _ in range(_TRIES):
        place = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
        with suppress(FileNotFoundError):
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if place.is_dir():
                return place, lock
            os.close(lock)
    raise FileNotFoundError(None, "drafts are taken away as soon as they are made")


def _clear_drafts(folder: Path) -> None:
    """Removes the drafts that no living process holds."""
    names: list[str] = []
    with suppress(OSError):
        names = [name for name in os.listdir(folder) if name.startswith(DRAFT)]
    for name in names:
        with suppress(OSError):
            handle = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder / name, ignore_errors=True)
            finally:
                os.close(handle)


@contextmanager
def alone_in(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps everyone else who asks this out of the folder, once they are out. Raises `FileError` where they stay."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written to, but not listed
        yield
        return
    try:
        end = time.monotonic() + patience
        while not _locked(handle):
            if time.monotonic() > end:
                raise FileError(f"cannot write to {folder}: another process is writing there")
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether nobody else holds it; so it is where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def run_in(folder: Path, what: str) -> Iterator[None]:
    """Makes `folder` this process's until the end of a long run of that kind, or of the process, however it ends.

    Raises `UserError` where another has it, `FileError` where it cannot be locked.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"cannot write results to {folder}: {error.strerror or error}") from error
    try:
        _take(lock, folder, what)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path, what: str) -> None:
    """Locks the open file and notes whose it is."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
        who = f" (process {holder})" if holder else ""
        raise UserError(f"another {what}{who} is writing into {folder}; wait for it, or name another --out") from error
    except OSError as error:
        raise FileError(f"cannot lock {folder}: {error.strerror or error}") from error
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
