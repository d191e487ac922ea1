"""JSON text as plain data, refused unread where it would take far more memory than it has characters."""

from __future__ import annotations

import json
from typing import Any

from moesim.errors import FileError, shorten

MAX_TEXT = 128 << 20
MAX_TREE = 768 << 20
# Bytes that Python takes for a list, a mapping, a key, another item, and half a text, at least.
_WEIGHTS = {b"[": 64, b"{": 100, b":": 100, b",": 36, b'"': 30}


def parse_json(text: bytes, where: str) -> Any:
    """What the text says; raises `FileError` where it is no JSON, or too much of it."""
    if len(text) > MAX_TEXT:
        raise FileError(f"cannot read {where}: it is larger than {MAX_TEXT >> 20} MiB, the most that is read")
    if len(text) > MAX_TREE // 100 and sum(text.count(sign) * weight for sign, weight in _WEIGHTS.items()) > MAX_TREE:
        raise FileError(f"cannot read {where}: its values would take more than {MAX_TREE >> 20} MiB of memory")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"cannot read {where}: it is no JSON: {shorten(str(error), 160)}") from error
