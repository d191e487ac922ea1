"""The compiled sums of the fit: scores of tokens by class, counts by class and sequence, and expected counts.

T tokens, S sequences, L layers, E experts, K choices, W classes. Choices are [T, L, K], E for none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Floats, Names, compiled

Floats32 = NDArray[np.float32]

NEWTON = 12


@compiled
def score_tokens(choices: Names, logs: Floats32, scores: Floats32) -> None:
    """Sum of the logs [L, E+1, W] of each token's choices, by class [T, W]."""
    T, L, K = choices.shape
    for t in range(T):
        scores[t, :] = 0.0
        for l in range(L):
            for k in range(K):
                e = choices[t, l, k]
                for c in range(logs.shape[2]):
                    scores[t, c] += logs[l, e, c]


@compiled
def count_by(choices: Names, label: NDArray[np.int32], counts: Floats) -> None:
    """Add each token's choices to the counts [labels, L, E+1] of its label [T]."""
    T, L, K = choices.shape
    for t in range(T):
        for l in range(L):
            for k in range(K):
                counts[label[t], l, choices[t, l, k]] += 1.0


@compiled
def expect(
    affinity: Floats, tilt: Floats, tokens: Floats, width: Floats, by_sequence: Floats, by_class: Floats, slope: Floats
) -> None:
    """Expected counts by sequence [S, L, E] and by class [W, L, E], and how fast those by sequence rise with the tilt.

    Of log weights affinity [L, W, E] and tilt [S, L, E], for `tokens` [S, W], `width` [L] experts a token.
    """
    (S, L, E), W = tilt.shape, tokens.shape[1]
    factor, weight, left = np.empty(E), np.empty(E), np.empty(E)
    by_sequence[:] = 0.0
    by_class[:] = 0.0
    slope[:] = 0.0
    base = np.exp(affinity)
    for s in range(S):
        for l in range(L):
            for e in range(E):
                factor[e] = np.exp(tilt[s, l, e])
            for c in range(W):
                if tokens[s, c] > 0.0:
                    total = 0.0
                    for e in range(E):
                        weight[e] = base[l, c, e] * factor[e]
                        total += weight[e]
                    wanted = min(width[l], E * (1.0 - 1e-6))
                    tau = wanted / total
                    for _ in range(NEWTON):
                        missing, rise = wanted - E, 0.0
                        for e in range(E):
                            left[e] = np.exp(-tau * weight[e])
                            missing += left[e]
                            rise += weight[e] * left[e]
                        tau += max(missing / max(rise, 1e-300), 0.0)
                        if missing < 1e-4 * wanted:
                            break
                    for e in range(E):
                        gone = np.exp(-tau * weight[e])
                        by_sequence[s, l, e] += tokens[s, c] * (1.0 - gone)
                        by_class[c, l, e] += tokens[s, c] * (1.0 - gone)
                        slope[s, l, e] += tokens[s, c] * tau * weight[e] * gone
