"""Fits the generative law of routing to a recorded trace, and says how well it does on sequences it has not seen.

T tokens, S sequences, L layers, E experts, K choices, W classes, R directions, P parts of a sequence.

Classes first (`fit_classes`), then affinities and tilts (`fit_tilt`), then everything that drawn tokens show and counts
do not (`fit_memory`), the order of experts last (`fit_order`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.routing.profile import GoodnessRow, ProfileMeta, RoutingProfile, rounded_profile
from moesim.routing.profile_file import BUDGET, stored_bytes
from moesim.traces import fit_classes, fit_memory
from moesim.traces.fit_classes import Recorded
from moesim.traces.fit_order import fit_order
from moesim.traces.fit_tilt import LogLinear, fit_log_linear
from moesim.traces.goodness import judge, side_of
from moesim.traces.trace import RouterTrace

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]

LEAST_TOKENS = 64
TOKENS_PER_CLASS, MOST_CLASSES = 800, 64
SEQUENCES_PER_DIRECTION, MOST_DIRECTIONS = 8, 16
TOKENS_PER_PART, MOST_PARTS = 64, 4
MOST_LIBRARY, LEAST_LIBRARY = 1024, 128
# counts of a sequence's neighbouring tokens vary about this much more than Poisson's
EXCESS = 3.0
ORDER_TOKENS = 20_000


class Sizes(NamedTuple):
    """W, R, P, and how many sequences the library keeps."""

    classes: int
    directions: int
    parts: int
    library: int


def fit(
    trace: RouterTrace, *, held_out: float = 0.5, seed: int = 0, name: str = "", progress: Progress | None = None
) -> RoutingProfile:
    """The law of a trace, fitted on all of its sequences; its table of goodness is that of a fit on all but a share
    `held_out` of them, judged on the rest (0: no table). The same seed gives the same profile.

    Raises `UserError` where the trace holds too little.
    """
    report = progress or _silent
    _check(trace)
    rows: tuple[GoodnessRow, ...] = ()
    if held_out > 0.0 and trace.sequences > 1:
        generator = np.random.default_rng([seed, 1])
        kept = _split(trace, held_out, generator)
        if trace.select(kept).tokens >= LEAST_TOKENS:
            library = trace.select(kept)
            part = fit_law(library, seed, name, lambda what, share: report(f"{what} (on a part)", share / 2))
            report("judging", 0.5)
            rows = tuple(judge(part, trace.select(~kept), generator, library))
    whole = fit_law(trace, seed, name, lambda what, share: report(what, 0.5 + share / 2))
    return replace(whole, meta=whole.meta.model_copy(update={"goodness": rows}))


def fit_law(trace: RouterTrace, seed: int, name: str, progress: Progress) -> RoutingProfile:
    """The law of all sequences of a trace, rounded as its file is, with no table."""
    sizes = choose_sizes(trace)
    recorded, generator = _recorded(trace), np.random.default_rng(seed)
    progress("token classes", 0.0)
    label = fit_classes.find_classes(recorded, sizes.classes, generator)
    classes = int(label.max()) + 1
    progress("affinities and tilts", 0.1)
    tokens = fit_classes.class_tokens(recorded, label, classes)
    width = _width(recorded)
    mean_width = np.maximum(width @ np.arange(width.shape[1]), 1e-3)
    by_sequence = recorded.counts(recorded.sequence, recorded.sequences)
    by_class = recorded.counts(label, classes)
    law = fit_log_linear(by_sequence, by_class, tokens, mean_width, sizes.directions, EXCESS)
    progress("order", 0.3)
    stay = fit_classes.stay(recorded, label, tokens)
    sharpness, order_bias = _order(trace, recorded, label, law, generator)
    draft = RoutingProfile(
        meta=_meta(trace, name),
        affinity=law.affinity,
        basis=law.basis,
        tilt=law.tilt,
        share=fit_classes.part_shares(recorded, label, stay, sizes.parts),
        stay=stay,
        residual=np.zeros((trace.layers, trace.meta.experts)),
        repeat=np.zeros(trace.layers),
        lag=fit_memory.first_lag((trace.layers, fit_memory.LAGS)),
        sharpness=sharpness,
        order_bias=order_bias,
        width=width,
        domain=trace.domain,
        step=trace.step,
        length=np.diff(trace.starts).astype(np.int32),
    )
    settled = fit_memory.settle(draft, recorded, seed, lambda share: progress("memory", 0.35 + 0.65 * share))
    return rounded_profile(_library(settled, sizes.library, generator))


def choose_sizes(trace: RouterTrace) -> Sizes:
    """As many classes, directions and parts as the trace can tell apart and half a megabyte can hold."""
    L, E, S = trace.layers, trace.meta.experts, trace.sequences
    # a token of few choices tells few classes apart
    W = int(np.clip(trace.tokens // TOKENS_PER_CLASS, 1, max(1, min(MOST_CLASSES, L * trace.meta.top_k * 2 // 3))))
    R = min(S // SEQUENCES_PER_DIRECTION, MOST_DIRECTIONS)
    P = int(np.clip(np.median(np.diff(trace.starts)) // TOKENS_PER_PART, 1, MOST_PARTS))
    library = min(S, MOST_LIBRARY)
    while True:
        shapes = {"affinity": (L, W, E), "basis": (L, R, E), "tilt": (library, R), "share": (library, P, W)}
        if stored_bytes(shapes) + _other_bytes(trace, library) <= BUDGET or W == 1:
            return Sizes(W, R, P, library)
        tables = stored_bytes({name: shapes[name] for name in ("affinity", "basis")})
        if tables < BUDGET // 2 and library > LEAST_LIBRARY:
            library = max(LEAST_LIBRARY, library * 9 // 10)
        elif tables < BUDGET // 2 and P > 1:
            P -= 1
        elif W > 2 * R:
            W = max(1, W * 9 // 10)
        else:
            R = R * 9 // 10


def _other_bytes(trace: RouterTrace, library: int) -> int:
    """Bytes of the small tables, with the noise and the order's factors of each expert."""
    return trace.layers * (4 * trace.meta.experts + 2 * trace.meta.top_k + 32) + 12 * library


def _check(trace: RouterTrace) -> None:
    if trace.tokens < LEAST_TOKENS:
        raise UserError(f"a trace of {trace.tokens} tokens is too short to fit: it takes at least {LEAST_TOKENS}")
    empty = [layer for layer in range(trace.layers) if (trace.experts[:, layer] >= trace.meta.experts).all()]
    if empty:
        raise UserError(f"layer {trace.meta.model_layers[empty[0]]} of the trace has no choice recorded")


def _silent(what: str, share: float) -> None:
    """Reports nothing."""


def _split(trace: RouterTrace, held_out: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Sequences to fit on [S]: of every domain and step its share, at least one on either side."""
    order = generator.permutation(trace.sequences)
    order = order[np.lexsort((trace.step[order], trace.domain[order]))]
    turn = (np.arange(trace.sequences) + generator.random()) * held_out
    kept = np.ones(trace.sequences, bool)
    kept[order] = np.floor(turn) == np.floor(turn + held_out)
    if kept.all() or not kept.any():
        kept[order[0]] = not kept[order[0]]
    return kept


def _recorded(trace: RouterTrace) -> Recorded:
    return Recorded(side_of(trace).choices, trace.sequence, trace.starts.astype(np.int64), trace.meta.experts)


def _width(recorded: Recorded) -> Floats:
    """Share of tokens with 0..K experts, by layer [L, K+1]."""
    many = (recorded.choices < recorded.experts).sum(axis=2)
    K = recorded.choices.shape[2]
    return np.stack([np.bincount(layer, minlength=K + 1) / len(many) for layer in many.T])


def _order(
    trace: RouterTrace, recorded: Recorded, label: NDArray[np.int32], law: LogLinear, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Power [L] and log factors [L, E] of the order; of a trace without order, those of the race itself."""
    L, E, T = trace.layers, recorded.experts, trace.tokens
    power, factor = np.ones(L), np.zeros((L, E))
    if not trace.meta.ordered or trace.meta.top_k == 1:
        return power, factor
    some = generator.choice(T, size=min(T, ORDER_TOKENS), replace=False)
    for layer in range(L):
        choices = recorded.choices[some, layer]
        known = np.minimum(choices, E - 1)
        logs = law.affinity[layer][label[some][:, None], known]
        tilt = (law.tilt @ law.basis[layer])[recorded.sequence[some][:, None], known]
        power[layer], factor[layer] = fit_order(choices, logs + tilt, E)
    return power, factor


def _library(profile: RoutingProfile, keep: int, generator: np.random.Generator) -> RoutingProfile:
    """The profile with `keep` of its sequences, of every domain and step its share."""
    S = profile.sequences
    if keep >= S:
        return profile
    order = generator.permutation(S)
    order = order[np.lexsort((profile.step[order], profile.domain[order]))]
    some = np.sort(order[(np.arange(keep) * S) // keep])
    part = {name: getattr(profile, name)[some] for name in ("tilt", "share", "domain", "step", "length")}
    return replace(profile, **part)


def _meta(trace: RouterTrace, name: str) -> ProfileMeta:
    meta = trace.meta
    return ProfileMeta(
        name=name, model=meta.model, router=meta.router, experts=meta.experts, top_k=meta.top_k,
        model_layers=meta.model_layers, domains=meta.domains,
        moments=tuple(int(step) for step in np.unique(trace.step[trace.step >= 0])), tokens=trace.tokens,
        sequences=trace.sequences, source=meta.source, licence=meta.licence, device=meta.device,
        software=meta.software, note=meta.note,
    )  # fmt: skip
