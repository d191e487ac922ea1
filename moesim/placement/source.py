"""What a placement is made from: loads and choices in two halves, one to plan with and one to judge the plan on.

A plan judged on its own data flatters itself. Sequences of a trace, or rows of counts, go to the halves in turn, domain
by domain and training step by step; a profile is drawn twice.

T tokens, L layers, K choices, E experts, S sequences, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.catalog import recorded
from moesim.errors import FileError, UnknownNameError, UserError
from moesim.placement.coactivation import pair_counts
from moesim.randomness import Streams
from moesim.routing.drawn import Draws
from moesim.routing.loads import layer_weights
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_draws import ProfileDraws
from moesim.routing.race_draws import RaceDraws, race_law
from moesim.routing.routers import router
from moesim.routing.routers.base import Router
from moesim.routing.routers.top_k import TopKRouter
from moesim.specs.model import ModelSpec, RouterSpec
from moesim.specs.routing import LoadProfile
from moesim.traces import measures
from moesim.traces.counts import RouterCounts
from moesim.traces.recordings import read_recording
from moesim.traces.trace import RouterTrace

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# of a profile, for each half: 256 sequences of 256 tokens
SOURCES, SEQUENCES, TOKENS = 64, 4, 1024


@dataclass(frozen=True)
class Half:
    """Copies to each expert `loads` [L, E]; `choices` [T, L, K] (names from E upwards: none) and `sequence` [T] of each
    token where tokens are known."""

    loads: Integers
    choices: NDArray[np.integer] | None = None
    sequence: Integers | None = None

    @property
    def pairs(self) -> Floats | None:
        """Tokens that chose both experts of a pair [L, E, E], where tokens are known."""
        return None if self.choices is None else pair_counts(self.choices, self.loads.shape[1])

    def by_source(self, ranks: int) -> NDArray[np.number]:
        """Copies to each expert from each rank [L, R, E]: sequences in turn on ranks; without tokens, even shares."""
        if self.choices is None or self.sequence is None:
            return np.repeat(self.loads[:, None, :] / ranks, ranks, axis=1)
        return np.moveaxis(
            measures.grouped_loads(self.choices, self.sequence % ranks, ranks, self.loads.shape[1]), 0, 1
        )


@dataclass(frozen=True)
class Observed:
    """Loads of a model's MoE layers: the half to plan with, and the one kept apart (None where there is but one row).

    `model_layers` [L]: each layer's place in the model.
    """

    experts: int
    model_layers: tuple[int, ...]
    fit: Half
    held_out: Half | None

    def of_layers(self, wanted: Iterable[int]) -> Observed:
        """Only the layers of these places in the model; raises `UserError` for one that is not there."""
        kept = sorted(set(wanted))
        missing = [layer for layer in kept if layer not in self.model_layers]
        if missing or not kept:
            known = f"{self.model_layers[0]} to {self.model_layers[-1]}"
            raise UserError(
                f"no MoE layer {missing[0] if missing else '(none named)'} among the recorded ones, {known}"
            )
        index = np.array([self.model_layers.index(layer) for layer in kept])
        held_out = self.held_out and _layers_of(self.held_out, index)
        return replace(self, model_layers=tuple(kept), fit=_layers_of(self.fit, index), held_out=held_out)


def observe_named(source: str, model: ModelSpec | None, options: Iterable[str] | None = None) -> Observed:
    """What a load profile, fitted profile or trace of the catalog, or a file in any known format, says of loads.

    `options` such as "top_k=8" say what a file leaves open. Raises `UserError` where it does not fit the model.
    """
    name: str | None = source
    if source in catalog.names("profiles"):
        profile: LoadProfile = catalog.load("profiles", source)
        name = profile.trace or profile.fitted
        if name is None:
            return observe_profile(profile, model)
    if name in recorded.names("fitted") and (name != source or name not in recorded.names("traces")):
        return observe_profile(RoutingProfile.load(recorded.find("fitted", name)), model)
    known = {*catalog.names("profiles"), *recorded.names("fitted"), *recorded.names("traces")}
    if name not in known and not Path(str(name)).exists():
        raise UnknownNameError("file, trace or load profile", source, known)
    found = read_recording(str(name), None, options)
    if not isinstance(found, (RouterTrace, RouterCounts)):
        raise FileError(f"{source} says how many experts were used, not which: nothing can be placed by it")
    if model is not None and model.n_experts != found.meta.experts:
        raise UserError(f"{source} has {found.meta.experts} experts, {model.name} {model.n_experts}")
    return observe(found)


def observe(recording: RouterTrace | RouterCounts) -> Observed:
    """A trace, or counts, in two halves."""
    meta = recording.meta
    if isinstance(recording, RouterCounts):
        second = _every_second(recording.domain, recording.step)
        parts = [recording.counts[~second], recording.counts[second]]
        halves = [Half(part.sum(axis=0)) if len(part) else None for part in parts]
    else:
        second = _every_second(recording.domain, recording.step)
        halves = [_half_of(recording.select(keep)) if keep.any() else None for keep in (~second, second)]
    if halves[0] is None or not halves[0].loads.any():
        raise UserError("the recording holds no token")
    return Observed(meta.experts, meta.model_layers, halves[0], halves[1])


def observe_profile(profile: LoadProfile | RoutingProfile, model: ModelSpec | None, seed: int = 0) -> Observed:
    """Tokens drawn from a load profile for a model's router, twice; a fitted profile brings its own experts.

    Raises `UserError` where a simple law comes without a model, or the model has other experts than the profile.
    """
    streams = Streams(seed)
    if isinstance(profile, RoutingProfile):
        rule, layers = _fitted_rule(profile, model), profile.meta.model_layers
        draws = _fitted_draws(profile, rule, streams)
    else:
        if model is None or not model.is_moe:
            raise UserError("a load profile does not say how many experts and layers there are: name a MoE --model")
        rule = _top_k_rule(model)
        layers = tuple(place for place, kind in enumerate(model.layer_kinds) if kind == "moe")
        draws = _simple_draws(profile, rule, len(layers), streams)
    planned, held_out = (_drawn(draws, len(layers), rule.experts, sample) for sample in (0, 1))
    return Observed(rule.experts, layers, planned, held_out)


def _fitted_draws(profile: RoutingProfile, rule: Router, streams: Streams) -> Draws:
    return ProfileDraws(
        profile,
        router_law=race_law(rule),
        layers=profile.layers,
        ranks=SOURCES,
        tokens_per_rank=TOKENS,
        sequences_per_rank=SEQUENCES,
        streams=streams,
        mix={},
        moment=None,
        blocks=False,
    )


def _simple_draws(profile: LoadProfile, rule: Router, layers: int, streams: Streams) -> Draws:
    weights = layer_weights(profile, rule.experts, layers, rule.top_k, streams)
    return RaceDraws(
        rule,
        profile,
        weights,
        ranks=SOURCES,
        tokens_per_rank=TOKENS,
        sequences_per_rank=SEQUENCES,
        streams=streams,
    )


def _fitted_rule(profile: RoutingProfile, model: ModelSpec | None) -> Router:
    meta = profile.meta
    if model is None:
        return router(RouterSpec(), meta.experts, meta.top_k)
    if (model.n_experts, model.moe_layers) != (meta.experts, profile.layers):
        raise UserError(
            f"the profile has {meta.experts} experts in {profile.layers} layers,"
            f" {model.name} {model.n_experts} in {model.moe_layers}"
        )
    return _top_k_rule(model)


def _top_k_rule(model: ModelSpec) -> Router:
    rule = router(model.router, model.n_experts, model.top_k)
    if not isinstance(rule, TopKRouter):
        raise UserError(
            f"profiles are drawn for top-k routers; {model.name} has {model.router.rule}: record a trace of it"
        )
    return rule


def _drawn(draws: Draws, layers: int, experts: int, sample: int) -> Half:
    choices = [draws.draw(layer, sample, 0, SOURCES).choices.reshape(SOURCES * TOKENS, -1) for layer in range(layers)]
    together = np.stack(choices, axis=1)
    sequence = np.arange(SOURCES * TOKENS, dtype=np.int64) * SEQUENCES // TOKENS
    return Half(measures.loads(together, experts), together, sequence)


def _half_of(trace: RouterTrace) -> Half:
    return Half(measures.loads(trace.experts, trace.meta.experts), trace.experts, trace.sequence.astype(np.int64))


def _layers_of(half: Half, index: Integers) -> Half:
    return replace(half, loads=half.loads[index], choices=None if half.choices is None else half.choices[:, index])


def _every_second(domain: NDArray[np.int32], step: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Every second member [N], counted through domains and steps, so that both halves have their share of each."""
    second = np.empty(domain.size, np.bool_)
    second[np.lexsort((np.arange(domain.size), step, domain))] = np.arange(domain.size) % 2 == 1
    return second
