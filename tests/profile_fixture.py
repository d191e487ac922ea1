"""Made-up profiles and the traces that are drawn from them: a known law to find again."""

from __future__ import annotations

import numpy as np

from moesim.routing.profile import ProfileMeta, RoutingProfile
from moesim.traces.goodness import drawn_side
from moesim.traces.trace import RouterTrace, TraceMeta, type_for


def made_up(
    *,
    layers=2,
    experts=16,
    top_k=2,
    classes=6,
    directions=2,
    sequences=24,
    parts=2,
    repeat=1.0,
    noise=0.1,
    domains=2,
    seed=0,
) -> RoutingProfile:
    """A profile with `classes` sparse in each sequence, popular and rare experts, and tilts of unit variance."""
    rng = np.random.default_rng(seed)
    popularity = rng.normal(0.0, 0.7, (layers, 1, experts))
    width = np.zeros((layers, top_k + 1))
    width[:, -1] = 1.0
    lag = np.zeros((layers, 8))
    lag[:, 0], lag[:, 1] = 0.7, 0.3
    return RoutingProfile(
        meta=ProfileMeta(
            experts=experts, top_k=top_k, model_layers=tuple(range(layers)), tokens=1, sequences=sequences,
            domains=tuple(f"domain {d}" for d in range(domains)),
        ),
        affinity=popularity + rng.normal(0.0, 1.0, (layers, classes, experts)),
        basis=rng.normal(0.0, 0.7 / max(directions, 1) ** 0.5, (layers, directions, experts)),
        tilt=rng.normal(0.0, 1.0, (sequences, directions)),
        share=rng.dirichlet(np.full(classes, 0.7), (sequences, parts)),
        stay=rng.uniform(0.0, 0.5, classes),
        residual=np.full((layers, experts), noise),
        repeat=np.full(layers, repeat),
        lag=lag,
        sharpness=np.full(layers, 0.6),
        order_bias=rng.normal(0.0, 0.2, (layers, experts)),
        width=width,
        domain=np.sort(np.arange(sequences) % domains).astype(np.int32),
        step=np.full(sequences, -1, np.int32),
        length=rng.integers(100, 500, sequences).astype(np.int32),
    )  # fmt: skip


def made_up_trace(
    profile: RoutingProfile, sequences: int, seed: int = 0, length: tuple[int, int] = (100, 400)
) -> RouterTrace:
    """Sequences drawn from a profile, each imitating one of its library, with that one's domain."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*length, sequences)
    library = rng.integers(0, profile.sequences, sequences)
    side = drawn_side(profile, library, lengths, rng)
    experts = side.choices.astype(type_for(profile.experts))
    experts[side.choices == profile.experts] = np.iinfo(experts.dtype).max
    sequence = np.repeat(np.arange(sequences), lengths).astype(np.int32)
    return RouterTrace(
        experts=experts,
        sequence=sequence,
        position=(np.arange(len(sequence)) - side.start[sequence]).astype(np.int32),
        domain=profile.domain[library],
        step=profile.step[library],
        meta=TraceMeta(
            experts=profile.experts, top_k=profile.meta.top_k, model_layers=profile.meta.model_layers,
            domains=profile.meta.domains,
        ),
    )  # fmt: skip
