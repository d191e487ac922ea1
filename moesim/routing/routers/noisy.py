"""Noisy top-k gating (Shazeer et al. 2017, section 2.1)."""

from __future__ import annotations

from moesim.routing.routers.base import Effect
from moesim.routing.routers.top_k import SoftmaxTopK


class NoisyTopK(SoftmaxTopK):
    """Normal noise on the logits, the K best of them, and a softmax over those K.

    The paper's noise is scaled for each expert by a learned softplus of the input, which is not at hand: here its
    standard deviation is the spec's `noise` for every expert.
    """

    effect = Effect(
        bytes="K copies a token, fewer where copies to one rank or node share a row.",
        drops="None of its own.",
        balance="Noise spreads the choices a little; the importance and load losses (CV^2) do the rest.",
    )

    @property
    def renormalizes(self) -> bool:
        """Always: the softmax is over the kept alone."""
        return True
