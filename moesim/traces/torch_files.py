"""Other tools' torch files as numpy arrays; torch is imported here, when one is read, and never runs what is in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import FileError, MissingPackageError, shorten

_MAX_DEPTH = 20


def load_torch(path: Path) -> Any:
    """The file's content, tensors as numpy arrays (bfloat16 as float32), the rest as plain data.

    Raises `FileError` where it is damaged or holds more than tensors and plain data; `MissingPackageError` without
    torch.
    """
    torch = _torch(path)
    _check_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"cannot read {path}: it holds other objects than tensors and plain data, and those could run code; "
            f"save it again from plain tensors ({shorten(str(error).splitlines()[0], 120)})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise FileError(
            f"cannot read {path}: it is no torch file, or a damaged one: {shorten(str(error), 120)}"
        ) from error
    return _plain(content, torch, 0)


def _torch(path: Path) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingPackageError(f"{path} is a torch file: to read it, pip install 'moesim[trace]'") from error
    return torch


def _check_size(path: Path) -> None:
    """Torch stores its archives uncompressed; one that would grow is no work of torch."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(f"cannot read {path}: it is a damaged archive: {error}") from error
    if declared > path.stat().st_size:
        raise FileError(f"cannot read {path}: it declares {declared:,} bytes, more than the file has")


def _plain(value: Any, torch: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise FileError("cannot read the torch file: it is nested too deeply")
    if isinstance(value, torch.Tensor):
        return _array(value, torch)
    if isinstance(value, dict):
        return {key: _plain(entry, torch, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > 0 and all(type(entry) is int for entry in value):
            return np.asarray(value, np.int64)
        return [_plain(entry, torch, depth + 1) for entry in value]
    return value


def _array(tensor: Any, torch: Any) -> Any:
    """A tensor as an array; refuses one that is larger than what is stored for it."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise FileError("cannot read the torch file: it holds a sparse or quantised tensor")
    if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 0):
        raise FileError(f"cannot read the torch file: a tensor of shape {tuple(tensor.shape)} repeats what is stored")
    dense = tensor.detach()
    return (dense.float() if dense.dtype == torch.bfloat16 else dense).contiguous().numpy()
