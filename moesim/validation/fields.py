"""The types of the keys of an `op`, and what every operation may tell beside its sizes."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from moesim.errors import UserError, shorten
from moesim.specs.base import Spec
from moesim.units import parse

MOST = 1 << 40
MOST_TOKENS = 1 << 24


def whole(value: object) -> int:
    """A whole number, from text or float too."""
    try:
        number = parse(value, "token")
    except UserError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"expected a whole number, got {shorten(value)}")
    return int(number)


def _bytes(value: object) -> float:
    number = parse(value, "B")
    if not 0 < number <= 1e15:
        raise ValueError(f"must be above 0 and at most 1e15 B, got {number:g}")
    return number


def as_list(value: object) -> object:
    """A list, from the JSON text that measurement tables hold too."""
    return json.loads(value) if isinstance(value, str) else value


Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST)]
Tokens = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_TOKENS)]
Ranks = Annotated[int, BeforeValidator(whole), Field(ge=1, le=4096)]
Small = Annotated[int, BeforeValidator(whole), Field(ge=1, le=1 << 20)]
Size = Annotated[float, BeforeValidator(_bytes)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str | float | None, Field(union_mode="left_to_right")]
Load = Name | dict[str, Any]
"""A load by name, or `{zipf: EXPONENT}`, `{log_normal: SIGMA}`."""


def _share(value: object) -> object:
    return parse(value, "1") if isinstance(value, str) else value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0.0, le=1.0)]


class Told(Spec):
    """What ran: any of these may stand in any operation. The nearest calibration answers, and the answer says so."""

    library: Text = None
    stack: Text = None
    software: Text = None
    release: Text = None
    kernel: Text = None

    @property
    def told_release(self) -> str | None:
        """The release as the case tells it, the most exact key first; a version alone goes with its software."""
        named = [str(text) for text in (self.software, self.stack, self.library) if text is not None]
        if self.release is None:
            return named[0] if named else None
        release = str(self.release)
        return release if not named or any(char.isalpha() for char in release[:3]) else f"{named[0]} {release}"


class GpuOp(Told):
    """An operation of one GPU: a catalog name, or `{base: NAME, field: value}`."""

    gpu: Name | dict[str, Any]


def enough_experts(top_k: int, experts: int) -> None:
    """Raises `ValueError` where a token cannot have so many experts."""
    if top_k > experts:
        raise ValueError(f"top_k {top_k} of only {experts} experts")
