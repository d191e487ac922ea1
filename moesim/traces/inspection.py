"""What a look at a recording shows, as plain numbers: for JSON, for tables, and for pictures.

L layers, E experts, G parts of a recording, F capacity factors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.trace import TraceMeta

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = Iterable[tuple[str, str, float, str]]


@dataclass(frozen=True)
class Load:
    """Load of experts: copies [L, E], and by layer [L]: busiest over mean, of first choices alone too (NaN where the
    order is not recorded), standard deviation over mean, slope of log load against log rank, entropy over the largest
    possible, share of experts without a copy, least busy over mean."""

    copies: Integers
    max_over_mean: Floats
    first_max_over_mean: Floats
    variation: Floats
    zipf_slope: Floats
    entropy: Floats
    idle: Floats
    min_over_mean: Floats


@dataclass(frozen=True)
class Locality:
    """Share of a token's experts that the token `lags` before it in the sequence chose too [lags, L], and what
    independent draws by popularity would give [L]; share of first choices repeated by the next token [L], and that
    by independent draws [L] (NaN where the order is not recorded)."""

    lags: tuple[int, ...]
    overlap: Floats
    independent: Floats
    repeats: Floats
    repeats_independent: Floats


@dataclass(frozen=True)
class Coactivation:
    """Phi of every pair of experts in a token [L, E, E], its strongest pairs [L, pairs] (names and phi), and how well
    a layer's first choice tells the next layer's [L-1]: share right from it, share right by always guessing the most
    frequent, mutual information in bits (NaN where the order is not recorded)."""

    phi: NDArray[np.float32]
    low: Integers
    high: Integers
    strongest: Floats
    next_guess: Floats
    next_mode: Floats
    next_bits: Floats


@dataclass(frozen=True)
class Imbalance:
    """Imbalance of batches of `sequences` sequences over `ranks` ranks (experts in order; 0: over the experts
    themselves), means over batches and layers. `mean_over_max` is the mean over layers (SGLang), `ratio_of_sums`
    the sum of means over the sum of maxima of the layers (vLLM), `excess` (max - mean) / mean (TensorRT-LLM)."""

    sequences: int
    tokens: float
    ranks: int
    max_over_mean: float
    p95: float
    mean_over_max: float
    ratio_of_sums: float
    excess: float
    idle: float


@dataclass(frozen=True)
class Drops:
    """Share of copies dropped [F] at capacity factors (K included) in batches of `sequences` (0: the whole trace)."""

    sequences: int
    factors: tuple[float, ...]
    dropped: Floats


@dataclass(frozen=True)
class Destinations:
    """Distinct ranks that a token's experts stand on, mean over tokens and layers; `uniform`: of random experts."""

    ranks: int
    mean: float
    uniform: float


@dataclass(frozen=True)
class Groups:
    """Parts of the trace (domains or training steps): their copies [G], the total variation of their load to the whole
    trace's, mean over layers [G], and busiest over mean, mean over layers [G]."""

    names: tuple[str, ...]
    copies: Integers
    shift: Floats
    max_over_mean: Floats


@dataclass(frozen=True)
class Sources:
    """Where the excess (max/mean - 1) of a batch of `sequences` comes from, mean over layers: popularity of experts
    over the whole trace, the batch's own sequences, and sampling of as many tokens at random."""

    sequences: int
    popularity: float
    sequence: float
    sampling: float


@dataclass(frozen=True)
class Inspection:
    """Everything that a look at a recording shows; what counts alone cannot tell is None or empty."""

    meta: TraceMeta
    tokens: float
    sequences: int
    load: Load
    locality: Locality | None
    coactivation: Coactivation | None
    imbalance: tuple[Imbalance, ...]
    drops: tuple[Drops, ...]
    destinations: tuple[Destinations, ...]
    domains: Groups
    steps: Groups
    sources: tuple[Sources, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that is absent is None. The matrices of co-activation are left out."""
        plain = _plain(self)
        if plain["coactivation"] is not None:
            del plain["coactivation"]["phi"]
        return dict(plain)

    def rows(self) -> list[tuple[str, str, float, str]]:
        """The main numbers as (group, what, value, unit), means over layers; what is absent is left out."""
        found = [*_load_rows(self.load), *_token_rows(self), *_batch_rows(self), *_group_rows(self)]
        return [row for row in found if np.isfinite(row[2])]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, TraceMeta):
        return value.model_dump(mode="json")
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _load_rows(load: Load) -> Rows:
    group = "load of experts, whole recording"
    yield group, "busiest over mean", float(load.max_over_mean.mean()), "ratio"
    yield group, "busiest over mean, worst layer", float(load.max_over_mean.max()), "ratio"
    yield group, "busiest over mean, first choices", float(load.first_max_over_mean.mean()), "ratio"
    yield group, "standard deviation over mean", float(load.variation.mean()), "ratio"
    yield group, "slope of log load against log rank", float(load.zipf_slope.mean()), "ratio"
    yield group, "entropy over the largest possible", float(load.entropy.mean()), "fraction"
    yield group, "experts without a token", float(load.idle.mean()), "fraction"


def _token_rows(inspection: Inspection) -> Rows:
    locality, together = inspection.locality, inspection.coactivation
    if locality is not None:
        for lag, overlap in zip(locality.lags, locality.overlap, strict=True):
            yield "locality", f"experts shared with the token {lag} before", float(overlap.mean()), "fraction"
        yield "locality", "the same by independent draws", float(locality.independent.mean()), "fraction"
        yield "locality", "first choice repeated by the next token", float(locality.repeats.mean()), "fraction"
        yield "locality", "the same by independent draws", float(locality.repeats_independent.mean()), "fraction"
    if together is not None and together.strongest.size:
        strongest = float(np.median(together.strongest[:, 0]))
        yield "co-activation", "strongest pair's phi, median of layers", strongest, "ratio"
        if together.next_guess.size:
            guess, bits = float(together.next_guess.mean()), float(together.next_bits.mean())
            yield "co-activation", "next layer's first choice guessed right from this one's", guess, "fraction"
            yield "co-activation", "information on the next layer's first choice", bits, "bit"


def _batch_rows(inspection: Inspection) -> Rows:
    for row in inspection.imbalance:
        over = f"{row.ranks} ranks" if row.ranks else "experts"
        batch = _batch(row.sequences)
        yield "imbalance", f"{batch}, over {over}: busiest over mean", row.max_over_mean, "ratio"
    for source in inspection.sources:
        batch = _batch(source.sequences)
        yield "sources of imbalance", f"{batch}: popularity of experts", source.popularity, "ratio"
        yield "sources of imbalance", f"{batch}: its own sequences", source.sequence, "ratio"
        yield "sources of imbalance", f"{batch}: sampling", source.sampling, "ratio"
    for drop in inspection.drops:
        for factor, share in zip(drop.factors, drop.dropped, strict=True):
            yield "drops", f"{_batch(drop.sequences)}, capacity factor {factor:g}", float(share), "fraction"
    for place in inspection.destinations:
        yield "destinations", f"ranks a token is sent to, of {place.ranks}", place.mean, "ratio"


def _group_rows(inspection: Inspection) -> Rows:
    for group, what, parts in (("domains", "domain", inspection.domains), ("training", "step", inspection.steps)):
        if len(parts.names) > 1:
            for name, shift, ratio in zip(parts.names, parts.shift, parts.max_over_mean, strict=True):
                yield group, f"{what} {name}: total variation to all", float(shift), "fraction"
                yield group, f"{what} {name}: busiest over mean", float(ratio), "ratio"


def _batch(sequences: int) -> str:
    if sequences == 0:
        return "whole recording"
    return "1 sequence" if sequences == 1 else f"{sequences} sequences"
