"""The law of a fitted profile written out plainly, token by token: what the compiled draws must agree with.

T tokens, E experts, K choices, W classes, M lags.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Law
from moesim.routing.profile import RoutingProfile

Floats = NDArray[np.float64]
Names = NDArray[np.uint16]


def twin_path(profile: RoutingProfile, sequence: int, tokens: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Classes [T] of a simulated sequence that imitates library sequence `sequence`."""
    parts = profile.share.shape[1]
    path = np.empty(tokens, np.int64)
    for t in range(tokens):
        odds = profile.share[sequence, t * parts // tokens] * (1.0 - profile.stay)
        if t and generator.random() < profile.stay[path[t - 1]]:
            path[t] = path[t - 1]
        else:
            path[t] = generator.choice(odds.size, p=odds / odds.sum())
    return path


def twin_choices(
    profile: RoutingProfile,
    layer: int,
    law: Law,
    sequence: int,
    path: NDArray[np.int64],
    generator: np.random.Generator,
) -> Names:
    """Choices [T, K], best first, E for none, of a sequence whose tokens have the classes `path` [T]."""
    E = profile.experts
    tilt = profile.tilt[sequence] @ profile.basis[layer] + profile.residual[layer] * generator.standard_normal(E)
    choices = np.full((path.size, law.top_k), E, np.uint16)
    for t, c in enumerate(path):
        logs = profile.affinity[layer, c] + tilt
        lag = 1 + generator.choice(profile.lag.shape[1], p=profile.lag[layer])
        raised = logs.copy()
        if t >= lag:
            earlier = choices[t - lag][choices[t - lag] < E]
            raised[earlier] += np.log1p(profile.repeat[layer])
        width = law.top_k
        if law.top_k == profile.meta.top_k:
            width = int(generator.choice(law.top_k + 1, p=profile.width[layer]))
        arrival = np.argsort(-(raised + generator.gumbel(size=E)))
        chosen = limited(law, arrival)[:width]
        score = profile.sharpness[layer] * logs[chosen] + profile.order_bias[layer, chosen]
        choices[t, :width] = chosen[np.argsort(-(score + generator.gumbel(size=width)))]
    return choices


def limited(law: Law, arrival: NDArray[np.int64]) -> NDArray[np.int64]:
    """Experts in order of arrival [E], those of the groups that do not stay left out; groups by their first arrival."""
    if law.best == 0:
        return arrival
    group = law.group[arrival]
    _, first = np.unique(group, return_index=True)
    kept = group[np.sort(first)[: law.top_groups]]
    return arrival[np.isin(group, kept)]
