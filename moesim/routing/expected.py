"""What routing amounts to on average where all experts are equally likely: exact, by counting.

E experts, K choices, G groups of which the L best are kept, P places (ranks or domains).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hit_probability(inside: Sequence[int], group_size: int, top_k: int, top_groups: int) -> float:
    """Probability that a token has an expert in a place that holds `inside` [G] experts of each group.

    With one group 1 - C(E-m, K) / C(E, K). The group-limited rule is that of group_score "max", where the L groups met
    first are kept. The walk follows the tokens that have missed the place so far, over the choices made and, for each
    kind of group (by its experts outside the place), how many groups of the kind are met.
    """
    kinds = sorted(Counter(group_size - held for held in inside).items())
    missed = {(0,) * len(kinds): 1.0}
    for chosen in range(top_k):
        following: dict[tuple[int, ...], float] = defaultdict(float)
        for met, probability in missed.items():
            room = sum(met) < top_groups
            eligible = (len(inside) if room else top_groups) * group_size - chosen
            outside = sum(count * free for count, (free, _) in zip(met, kinds, strict=True)) - chosen
            following[met] += probability * outside / eligible
            for kind, (free, groups) in enumerate(kinds if room else ()):
                more = (*met[:kind], met[kind] + 1, *met[kind + 1 :])
                following[more] += probability * (groups - met[kind]) * free / eligible
        missed = {met: probability for met, probability in following.items() if probability > 0.0}
    return 1.0 - sum(missed.values())


def hit_probabilities(
    place: NDArray[np.int64], places: int, top_k: int, groups: int = 1, top_groups: int = 1
) -> NDArray[np.float64]:
    """Probability that a token reaches each place [P]; `place` [E] of each expert, groups contiguous and equal."""
    E = place.size
    inside = np.zeros((places, groups), dtype=np.int64)
    np.add.at(inside, (place, np.arange(E) * groups // E), 1)
    kinds, which = np.unique(np.sort(inside, axis=1), axis=0, return_inverse=True)
    return np.array([hit_probability(kind.tolist(), E // groups, top_k, top_groups) for kind in kinds])[which.ravel()]


def distinct_places(places: int, experts: int, top_k: int, groups: int = 1, top_groups: int = 1) -> float:
    """Mean number of distinct places, of P contiguous ones, that a token reaches under uniform routing.

    Without groups P * (1 - C(E-E/P, K) / C(E, K)). With groups, P * (1 - C(G-G/P, L) / C(G, L)) for P <= G and
    L * D(P/G; E/G, K/L) beyond are what it would be were the choices spread evenly over L groups; this is the mean
    itself, for DeepSeek-V3 0.4 % (8 places) and 1.8 % (64 places) below them.
    """
    return float(hit_probabilities(np.arange(experts) * places // experts, places, top_k, groups, top_groups).sum())
