"""Imbalance and drops of batches of sequences drawn from a load profile.

B sequences of a batch, T tokens, L layers, E experts, K choices, R ranks, G batches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.catalog import recorded
from moesim.errors import UnknownNameError, UserError
from moesim.provenance import Basis
from moesim.randomness import Streams
from moesim.routing.loads import layer_weights
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_draws import like_in_length, pick
from moesim.routing.profile_law import Seeds, Simulated, draw_sequences, layer_law, plain_law
from moesim.routing.race_draws import RaceDraws
from moesim.routing.routers import router
from moesim.specs.model import RouterSpec
from moesim.specs.routing import LoadProfile
from moesim.traces import measures
from moesim.validation.answer import Prediction, Settings
from moesim.validation.ops import RoutingOp

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_BATCHES, LEAST_BATCHES, TOKENS = 256, 8, 300_000
MOST_TOKENS = 2_000_000
LAYERS_OF_MEAN = 6
DEFAULT_TOKENS = 4096
SPREAD = (0.05, 0.95)
"""The range of an answer holds this part of the drawn batches: a measured batch is one of them."""

_DROPPED = re.compile(r"dropped_token_fraction\[([\d.]+)\]")


@dataclass(frozen=True)
class Drawn:
    """Choices [T, L, K] of G batches of B sequences, one after another, and the first token of each sequence."""

    choices: NDArray[np.uint16]
    starts: Ints
    batches: Ints
    experts: int
    basis: Basis
    notes: tuple[str, ...]


def routing(op: RoutingOp, settings: Settings) -> dict[str, Prediction]:
    """Busiest over mean of experts and ranks, drops, idle experts, distinct ranks of a token."""
    drawn = _drawn(op.model_copy(update={"expert_parallel": 1}))
    E, R, K = drawn.experts, op.expert_parallel, drawn.choices.shape[2]
    if R > E:
        raise UserError(f"op.expert_parallel: {E} experts cannot be spread over {R} ranks")
    counts = measures.batch_loads(drawn.choices, drawn.starts, E, drawn.batches)
    by_rank = measures.max_over_mean(measures.rank_loads(counts, R))
    tokens = np.diff(drawn.starts)[drawn.batches].sum(axis=1)
    found = {
        "expert_load_max_over_mean": measures.max_over_mean(counts),
        "rank_load_max_over_mean": by_rank,
        "balancedness": 1.0 / by_rank,
        "idle_expert_fraction": measures.idle_fraction(counts),
        "distinct_destination_ranks": measures.distinct_places(drawn.choices, measures.contiguous(E, R), R)[None],
    }
    for factor in _factors(settings.metrics):
        dropped = measures.drop_fraction(counts, [factor], K, tokens[:, None])[..., 0]
        found |= {name: dropped for name in settings.metrics if _factor(name) == factor}
    return {name: _prediction(by_batch, drawn) for name, by_batch in found.items()}


def _factor(metric: str) -> float | None:
    match = _DROPPED.fullmatch(metric)
    return float(match[1]) if match else None


def _factors(metrics: tuple[str, ...]) -> list[float]:
    return sorted({factor for name in metrics if (factor := _factor(name))})


def _prediction(by_batch: Floats, drawn: Drawn) -> Prediction:
    """Mean over layers and batches [G, L]; the range is that of batches."""
    mean = by_batch.mean(axis=1)
    low, high = np.quantile(mean, SPREAD)
    value = float(mean.mean())
    return Prediction(value, min(float(low), value), max(float(high), value), drawn.basis, drawn.notes)


@lru_cache(maxsize=16)
def _drawn(op: RoutingOp) -> Drawn:
    """Batches of the profile; the same for every number of ranks."""
    name, profile = _load_profile(op.profile)
    if profile.trace:
        raise UserError(f"op.profile: {op.profile} is a recorded trace; a law is asked here")
    if profile.fitted:
        drawn = _from_fitted(op, RoutingProfile.load(recorded.find("fitted", profile.fitted)))
    else:
        drawn = _from_law(op, profile)
    renamed = () if name == op.profile else (f"profile {op.profile}: answered by {name}",)
    return Drawn(drawn.choices, drawn.starts, drawn.batches, drawn.experts, drawn.basis, (*renamed, *drawn.notes))


def _load_profile(named: str) -> tuple[str, LoadProfile]:
    """The profile that a name stands for, with or without its "-like": a named load, a fitted law, or its file."""
    base = named.removesuffix("-like")
    for name in (named, base, f"{base}-like"):
        if name in catalog.names("profiles"):
            return name, catalog.load("profiles", name)
        if name in recorded.names("fitted"):
            return name, LoadProfile(name=name, fitted=name)
    if named.endswith(recorded.SUFFIX):
        return named, LoadProfile(name=named, fitted=named)
    raise UnknownNameError("profile", named, {*catalog.names("profiles"), *recorded.names("fitted")})


def _batches(op: RoutingOp, tokens: float) -> int:
    """As many as are affordable, and enough to tell the mean; raises `UserError` where a single one is too large."""
    if tokens * op.sequences > MOST_TOKENS:
        raise UserError(f"op: a batch of {op.sequences} sequences of {tokens:.0f} tokens; at most {MOST_TOKENS} tokens")
    return int(np.clip(TOKENS / max(1.0, tokens * op.sequences), LEAST_BATCHES, MOST_BATCHES))


def _from_fitted(op: RoutingOp, profile: RoutingProfile) -> Drawn:
    """Sequences that imitate library sequences, each equally likely, as long as these or of `tokens` tokens."""
    generator = Streams(op.seed).generator("validation/sequences")
    chance = np.full(profile.sequences, 1.0 / profile.sequences)
    if op.domain is not None:
        if op.domain not in profile.meta.domains:
            raise UnknownNameError("domain", op.domain, profile.meta.domains)
        own = profile.domain == profile.meta.domains.index(op.domain)
        chance = own / own.sum()
    if op.tokens is not None:
        chance = like_in_length(profile, chance, float(op.tokens))
    G = _batches(op, op.tokens or float(chance @ profile.length))
    library = pick(chance / chance.sum(), generator.random(G * op.sequences))
    lengths = np.full(library.size, op.tokens, np.int64) if op.tokens else profile.length[library].astype(np.int64)
    starts = np.append(0, np.cumsum(lengths)).astype(np.int64)
    which = Simulated(library, starts, np.arange(library.size).astype(np.uint64))
    K, layers = op.top_k or profile.meta.top_k, _layers(op, profile.meta.model_layers)
    seeds = generator.integers(0, 1 << 62, (len(layers), 2))
    path, law = int(generator.integers(0, 1 << 62)), plain_law(profile.experts, K)
    choices = np.empty((int(starts[-1]), len(layers), K), np.uint16)
    for place, layer in enumerate(layers):
        seed = Seeds(path, int(seeds[place, 0]), int(seeds[place, 1]))
        choices[:, place] = draw_sequences(profile, layer, layer_law(profile, layer, K), law, which, seed)[0]
    batches = np.arange(library.size).reshape(G, op.sequences)
    return Drawn(choices, starts, batches, profile.experts, "fitted", _told(op, len(layers), profile.layers))


def _layers(op: RoutingOp, known: tuple[int, ...]) -> list[int]:
    """Places of the asked layer, or of some at even distances, among the profile's layers."""
    if op.layer is None:
        return sorted({int(place) for place in np.linspace(0, len(known) - 1, LAYERS_OF_MEAN).round()})
    if op.layer not in known:
        raise UserError(f"op.layer: the profile has layers {known[0]} to {known[-1]}, not {op.layer}")
    return [known.index(op.layer)]


def _told(op: RoutingOp, drawn: int, layers: int) -> tuple[str, ...]:
    return () if op.layer is not None or drawn == layers else (f"mean over {drawn} of {layers} layers",)


def _from_law(op: RoutingOp, profile: LoadProfile) -> Drawn:
    """Sequences of a simple law of popularity, for the experts that the case or its model states."""
    model = catalog.load("models", op.model) if op.model else None
    E = op.experts or (model.n_experts if model else 0)
    K = op.top_k or (model.top_k if model else 0)
    if not E or not K:
        raise UserError(f"op.experts and op.top_k (or op.model) are required: the profile {op.profile} knows none")
    T, L = op.tokens or DEFAULT_TOKENS, max((op.layer or 0) + 1, model.moe_layers if model else LAYERS_OF_MEAN)
    layers = [op.layer] if op.layer is not None else list(range(0, L, max(1, L // LAYERS_OF_MEAN)))
    streams, G = Streams(op.seed), _batches(op, T)
    rule = router(model.router if model else RouterSpec(), E, K)
    draws = RaceDraws(
        rule, profile, layer_weights(profile, E, L, K, streams), ranks=G, tokens_per_rank=op.sequences * T,
        sequences_per_rank=op.sequences, streams=streams,
    )  # fmt: skip
    choices = np.stack([draws.draw(layer, 0, 0, G).choices.reshape(-1, K) for layer in layers], axis=1)
    starts = np.arange(G * op.sequences + 1, dtype=np.int64) * T
    batches = np.arange(G * op.sequences).reshape(G, op.sequences)
    told = () if op.tokens else (f"sequences of {T} tokens assumed",)
    basis = profile.basis("log_normal", "sequence_tilt")
    return Drawn(choices, starts, batches, E, basis, (*told, *_told(op, len(layers), L)))
