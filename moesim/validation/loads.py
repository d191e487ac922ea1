"""Rows of the busiest rank under any load that a case may name: those of kernel benchmarks, and the router's own.

S samples, E experts, R ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from moesim import catalog
from moesim.costs.kernels import expert_rows
from moesim.costs.kernels.loads import busiest_rows
from moesim.errors import UserError, nearest_hint, shorten
from moesim.randomness import Streams
from moesim.routing.inclusion import inclusion
from moesim.routing.loads import layer_weights
from moesim.specs.routing import LoadProfile

Floats = NDArray[np.float64]
Notes = tuple[str, ...]

_BARE = re.compile(r"power[-_ ]?law([-_ ]eplb)?\Z")
_SIMPLE = re.compile(r"(zipf|log[-_ ]?normal)[-_ :=]*([0-9]*\.?[0-9]+)\Z")
_LAWS = ("zipf", "log_normal")
_EXPONENT = "1.01"
_DRAWS = 16
"""Layers drawn of a profile: each a popularity of its own."""


def rows_of(load: str | Mapping[str, Any], tokens: int, top_k: int, experts: int, ranks: int) -> tuple[Floats, Notes]:
    """Rows [S, E / R] of the busiest rank, and what was assumed; raises `UserError` for a load of no known law."""
    uneven = () if experts % ranks == 0 else (f"{experts} experts on {ranks} ranks: some ranks have one more",)
    text = load.strip().lower() if isinstance(load, str) else ""
    bare = _BARE.match(text)
    if bare:
        name = f"power_law_{_EXPONENT}{bare[1] or ''}"
        return expert_rows(name, tokens, top_k, experts, ranks), (f"load {text}: exponent {_EXPONENT} taken", *uneven)
    profile = _profile(load, text)
    if profile is None:
        return expert_rows(text, tokens, top_k, experts, ranks), uneven
    expected = _popularity(profile.model_dump_json(), experts, top_k) * tokens
    told = f"load {profile.name}: {_DRAWS} layers drawn from it, the busiest rank's expected rows"
    return busiest_rows(expected, ranks), (told, *uneven)


def hottest(load: str | Mapping[str, Any], tokens: int, top_k: int, experts: int, ranks: int) -> tuple[float, Notes]:
    """Rows of the busiest rank over the mean."""
    rows, notes = rows_of(load, tokens, top_k, experts, ranks)
    return float(rows.sum(axis=-1).mean() * ranks / (tokens * top_k)), notes


def _profile(load: str | Mapping[str, Any], text: str) -> LoadProfile | None:
    """The router's law that a load names; None for a load of kernel benchmarks."""
    simple = _SIMPLE.match(text)
    if simple:
        load = {re.sub("[-_ ]", "", simple[1]).replace("lognormal", "log_normal"): float(simple[2])}
    if isinstance(load, Mapping):
        known = {str(key).replace("-", "_"): value for key, value in load.items()}
        for key in known:
            if key not in _LAWS:
                raise UserError(f"op.load.{shorten(key)}: not a law of a load{nearest_hint(key, _LAWS)}")
        name = ", ".join(f"{key} {value}" for key, value in known.items())
        try:
            return LoadProfile.model_validate({"name": name, **known})
        except ValidationError as error:
            raise UserError(f"op.load: {error.errors()[0]['msg']}") from error
    if text not in catalog.names("profiles") or text == "uniform":
        return None
    found = catalog.load("profiles", text)
    if found.fitted is not None or found.trace is not None:
        raise UserError(f"op.load: {text} is fitted to a trace; name a simple law, or the rows of each expert")
    return found


@lru_cache(maxsize=256)
def _popularity(profile: str, experts: int, top_k: int) -> Floats:
    """Chance [S, E] that a token chooses each expert, in layers drawn from a profile."""
    found = LoadProfile.model_validate_json(profile)
    weights = layer_weights(found, experts, _DRAWS, top_k, Streams(0))
    return inclusion(weights, float(top_k))
