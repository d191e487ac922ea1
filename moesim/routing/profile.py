"""A fitted law of routing: what a router did in a recorded trace, in half a megabyte, to be drawn from at any length.

S library sequences, L MoE layers, E experts, K choices, W token classes, R directions of the tilt, P parts of a
sequence, M lags.

    log w[t,l,e] = affinity[l,c_t,e] + sum_r tilt[s,r] basis[l,r,e] + residual[l,e] eps[s,l,e]
                   + log(1 + repeat[l]) where token t - d, d drawn from lag[l], chose e in layer l
    choices      = the first K of a race of rates w; c_t stays with stay[c], or else is
                   drawn anew, so that it has the shares share[s,p] in part p of the sequence
    their order  = a race of rates w^sharpness[l] exp(order_bias[l,e]), the repeat left out
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from moesim.errors import FileError, shorten
from moesim.files import write_whole
from moesim.inputs import source_of
from moesim.routing._stationary_kernels import sequence_chances
from moesim.routing.moments import simple_law
from moesim.routing.profile_file import SHAPES, contradiction, fine_enough, pack, unpack
from moesim.routing.sequences import weighted
from moesim.specs.base import Spec

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]

FORMAT = "moesim-routing-profile"
VERSION = 1
MAX_FILE_BYTES = 500_000


class GoodnessRow(Spec):
    """One line of the table that judges a profile on sequences it was not fitted on.

    `batch` sequences together; `ranks` of an expert-parallel group, 0 for experts; `recorded` and `drawn` are means
    over layers and batches; `error` is their relative difference, for shares (`unit` "points") the plain one;
    `worst_layer` the largest error of a layer; `replay` the error of other recorded sequences in place of drawn ones,
    `popularity` that of draws from each layer's popularity alone.
    """

    metric: str
    batch: int = 0
    ranks: int = 0
    unit: str = "relative"
    recorded: float
    drawn: float
    error: float
    worst_layer: float
    replay: float | None = None
    popularity: float | None = None


class ProfileMeta(Spec):
    """What a profile says about itself: the model, the trace it was fitted from, and how well it does."""

    version: int = Field(default=VERSION, ge=1, le=VERSION)
    name: str = ""
    model: str = ""
    router: str = ""
    experts: int = Field(strict=True, ge=1, le=65534)
    top_k: int = Field(strict=True, ge=1, le=65534)
    model_layers: tuple[int, ...]
    domains: tuple[str, ...]
    moments: tuple[int, ...] = ()
    tokens: int = Field(strict=True, ge=1)
    sequences: int = Field(strict=True, ge=1)
    source: str = ""
    licence: str = ""
    device: str = ""
    software: str = ""
    note: str = ""
    goodness: tuple[GoodnessRow, ...] = ()


@dataclass(frozen=True)
class RoutingProfile:
    """The law of the file's top. `share` [S, P, W] sums to 1 in each of P equal parts of a sequence, `lag` [L, M] over
    lags 1..M; `width` [L, K+1] is the share of tokens with 0..K experts; `domain`, `step` (-1: unknown) and `length`
    describe library sequences.
    """

    meta: ProfileMeta
    affinity: Floats
    basis: Floats
    tilt: Floats
    share: Floats
    stay: Floats
    residual: Floats
    repeat: Floats
    lag: Floats
    sharpness: Floats
    order_bias: Floats
    width: Floats
    domain: Integers
    step: Integers
    length: Integers

    @property
    def layers(self) -> int:
        """L."""
        return int(self.affinity.shape[0])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.affinity.shape[2])

    @property
    def sequences(self) -> int:
        """S, of the library."""
        return int(self.domain.size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to one safetensors file, whole or not at all.

        Raises `FileError` where it cannot be written or takes more than half a megabyte.
        """
        header = {FORMAT: self.meta.model_dump_json()}
        arrays = _arrays(self)
        fine = fine_enough(arrays)
        data = to_bytes(
            {key: value for name, value in arrays.items() for key, value in pack(name, value, fine)}, header
        )
        if len(data) > MAX_FILE_BYTES:
            raise FileError(f"the profile takes {len(data)} bytes, more than {MAX_FILE_BYTES}: fit with fewer classes")
        write_whole(path, data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> RoutingProfile:
        """Read a profile; raises `FileError` where the file is no profile, or one that contradicts itself."""
        source = Path(path)
        try:
            if source_of(source).stat().st_size > MAX_FILE_BYTES:
                raise FileError(f"{source} is larger than {MAX_FILE_BYTES} bytes: not a routing profile")
            with safe_open(source, framework="numpy") as file:
                header = file.metadata() or {}
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise FileError(f"cannot read {source}: {error.strerror or error}") from error
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{source} is no safetensors file: {shorten(str(error))}") from error
        if FORMAT not in header:
            raise FileError(f"{source} is no routing profile: its header names none")
        try:
            meta = ProfileMeta.model_validate(json.loads(header[FORMAT]))
            arrays = {name: unpack(name, stored) for name in SHAPES}
        except (ValidationError, ValueError, KeyError) as error:
            raise FileError(f"{source} is a damaged routing profile: {shorten(str(error), 300)}") from error
        size = {"L": len(meta.model_layers), "E": meta.experts, "J": meta.top_k + 1}
        wrong = contradiction(size, len(meta.domains), arrays)
        if wrong:
            raise FileError(f"{source} is a damaged routing profile: {wrong}")
        return RoutingProfile(meta=meta, **arrays)

    def chosen(self, mix: Mapping[str, float], moment: str | None) -> Floats:
        """Probability [S] with which a simulated sequence imitates each library sequence.

        By the shares of domains (`mix`; empty: as recorded), inside a domain by tokens, and of one third of the
        recorded steps of training (`moment`: early, middle, late; None: late, where there are so many). Raises
        `UserError` where nothing is left.
        """
        lengths = self.length.astype(np.float64)
        return weighted(lengths, self.domain, self.step, self.meta.domains, mix, moment)

    def inclusion(self) -> Floats:
        """Mean chance [S, L, E] that a token of each library sequence chooses each expert, its classes averaged."""
        return self._inclusion

    @cached_property
    def _inclusion(self) -> Floats:
        return np.stack([self.sequence_inclusion(s) for s in range(self.sequences)])

    def sequence_inclusion(self, s: int) -> Floats:
        """Mean chance [L, E] that a token of library sequence s chooses each expert, its noise apart."""
        tilt = np.einsum("r,lre->le", self.tilt[s], self.basis)
        chance, _ = sequence_chances(self.affinity, tilt, self.share[s].mean(axis=0), self.mean_width(), self.repeat)
        return np.asarray(chance)

    def mean_width(self) -> Floats:
        """Mean number of experts of a token [L]."""
        return np.asarray(self.width @ np.arange(self.width.shape[1]))

    def simple_law(self) -> tuple[tuple[float, float], float]:
        """The nearest `log_normal` (first and last layer) and `sequence_tilt`, for models with other experts."""
        odds, each = self.chosen({}, None), self.inclusion()
        chance = np.tensordot(odds, each, axes=1)
        slope = -(1.0 - chance) * np.log1p(-np.minimum(chance, 1.0 - 1e-9))
        between = np.tensordot(odds, (each - chance) ** 2, axes=1) + (slope * self.residual) ** 2
        return simple_law(chance, between, self.meta.top_k)


def _arrays(profile: RoutingProfile) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(profile, field.name) for field in fields(profile) if field.name != "meta"}


def rounded_profile(profile: RoutingProfile) -> RoutingProfile:
    """The profile as it comes back from its file."""
    arrays = _arrays(profile)
    fine = fine_enough(arrays)
    rounded = {name: unpack(name, dict(pack(name, value, fine))) for name, value in arrays.items()}
    return RoutingProfile(meta=profile.meta, **rounded)
