"""Other tools' torch files as numpy arrays; torch is imported here, when one is read, and never runs what is in it."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import FileError, MissingPackageError, shorten
from moesim.inputs import source_of
from moesim.traces.pickle_size import check_growth

_DAMAGED = (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError)
_MAX_DEPTH = 20
_MAX_PICKLE = 256 << 20
_FREE_BYTES = 64 << 20
_MAX_GROWTH = 8


def load_torch(path: Path) -> Any:
    """The file's content, tensors as numpy arrays (bfloat16 as float32), the rest as plain data.

    Raises `FileError` where it is damaged or holds more than tensors and plain data; `MissingPackageError` without
    torch.
    """
    source_of(path)
    torch = _torch(path)
    _check_archive(path)
    try:
        with warnings.catch_warnings():  # of other protocols: those are read, or refused in one line
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"cannot read {path}: it holds other objects than tensors and plain data, and those could run code; "
            f"save it again from plain tensors ({shorten(str(error).splitlines()[0], 120)})"
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        raise FileError(
            f"cannot read {path}: it is no torch file, or a damaged one: {shorten(str(error), 120)}"
        ) from error
    return _Plain(path, torch).value(content, 0)


def _torch(path: Path) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingPackageError(f"{path} is a torch file: to read it, pip install 'moesim[trace]'") from error
    return torch


def _check_archive(path: Path) -> None:
    """Torch stores its archives uncompressed: one that would grow, in bytes or in objects, is no work of torch."""
    if not zipfile.is_zipfile(path):
        raise FileError(
            f"cannot read {path}: it is a pickle, or a torch file from before version 1.6; load it where it was made "
            "and save it again with torch.save"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            declared = sum(entry.file_size for entry in entries)
            if declared > path.stat().st_size or any(entry.compress_type for entry in entries):
                raise FileError(f"cannot read {path}: it declares {declared:,} bytes, more than the file has")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _check_tree(archive, entry, path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise FileError(f"cannot read {path}: it is a damaged archive: {shorten(str(error), 160)}") from error


def _check_tree(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    if entry.file_size > _MAX_PICKLE:
        raise FileError(f"cannot read {path}: its pickle is larger than {_MAX_PICKLE >> 20} MiB")
    try:
        with archive.open(entry) as file:
            check_growth(file)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise FileError(f"cannot read {path}: its pickle: {shorten(str(error), 120)}") from error


class _Plain:
    """Makes a torch file's content plain; counts what its tensors take, for many may share what one has stored."""

    def __init__(self, path: Path, torch: Any) -> None:
        self.path = path
        self.torch = torch
        self.left = max(_FREE_BYTES, _MAX_GROWTH * path.stat().st_size)

    def value(self, value: Any, depth: int) -> Any:
        """Tensors as arrays, lists of whole numbers too, the rest as it is."""
        if depth > _MAX_DEPTH:
            raise FileError(f"cannot read {self.path}: it is nested too deeply")
        if isinstance(value, self.torch.Tensor):
            return self._array(value)
        if isinstance(value, dict):
            return {key: self.value(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            if len(value) > 0 and all(type(entry) is int and abs(entry) < 1 << 63 for entry in value):
                return np.asarray(value, np.int64)
            return [self.value(entry, depth + 1) for entry in value]
        return value

    def _array(self, tensor: Any) -> Any:
        """A tensor as an array; refuses one that is larger than what is stored for it."""
        if tensor.layout != self.torch.strided or tensor.is_quantized:
            raise FileError(f"cannot read {self.path}: it holds a sparse or quantised tensor")
        size = tensor.numel() * tensor.element_size()
        if size > max(tensor.untyped_storage().nbytes(), 0):
            raise FileError(f"cannot read {self.path}: a tensor of shape {tuple(tensor.shape)} repeats what is stored")
        self.left -= size
        if self.left < 0:
            raise FileError(f"cannot read {self.path}: its tensors repeat what is stored more than {_MAX_GROWTH} times")
        dense = tensor.detach()
        return (dense.float() if dense.dtype == self.torch.bfloat16 else dense).contiguous().numpy()
