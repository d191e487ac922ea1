"""The release: part of the name of every stored answer."""

from __future__ import annotations

__version__ = "0.1.0"
