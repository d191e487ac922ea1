"""What training does to the popularity of experts: the pull to favourites, and what is set against it.

One step moves the log weight of each expert, x [L, E], where p is its chance to be among a token's K and P its share of
the weight (what a softmax gives it on average):

  growth           + growth (E p / K - 1)                  what is chosen more is trained more, and wins more
  auxiliary-loss   - rate E P (f - sum_e f P), f = E p / K the gradient of E sum f P in the logits (Switch, GShard)
  z-loss           - rate 2 log(sum_e exp x) P             the gradient of (logsumexp)^2 (ST-MoE)
  bias-update      - rate sign(E p / K - 1)                the bias of DeepSeek-V3, in units of logits

The walk ends before `steps` where it has settled. L layers, E experts, K choices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.specs.routing import Balancing

Floats = NDArray[np.float64]
NEWTON = 2
SETTLED = 1e-9
MOST = 60.0


def balance(log_weights: Floats, top_k: int, spec: Balancing) -> Floats:
    """Log weights [L, E] after the steps of `spec`."""
    walk = _Walk(log_weights, top_k, spec)
    for _ in range(spec.steps):
        if walk.settled:
            break
        walk.step()
    return np.asarray(walk.logs)


def history(log_weights: Floats, top_k: int, spec: Balancing, every: int = 1) -> list[tuple[int, float, float]]:
    """How the load evolves: (step, max/mean, share of experts below a tenth of the mean), means over layers."""
    walk, told = _Walk(log_weights, top_k, spec), []
    for step in range(spec.steps + 1):
        if step % every == 0 or step == spec.steps:
            load = walk.load()
            told.append((step, float(load.max(axis=-1).mean()), float((load < 0.1).mean())))
        walk.step()
    return told


class _Walk:
    """Log weights on their way; `load` is E p / K."""

    def __init__(self, log_weights: Floats, top_k: int, spec: Balancing) -> None:
        self.logs = log_weights - log_weights.mean(axis=-1, keepdims=True)
        self.spec, self.top_k, self.experts = spec, top_k, log_weights.shape[-1]
        # What a z-loss sees beside differences: the logits' level, from a router that starts at zero logits.
        self.level = np.zeros((*log_weights.shape[:-1], 1))
        self.tau = np.full(self.level.shape, -np.log1p(-min(top_k / self.experts, 1 - 1e-9)))
        self.settled = False
        self.load(8)

    def load(self, newton: int = NEWTON) -> Floats:
        """Rows of each expert over the mean; the race's threshold follows the last step's."""
        shares = self._shares() * self.experts
        for _ in range(newton):
            miss = np.exp(-self.tau * shares)
            excess = (1 - miss).sum(axis=-1, keepdims=True) - self.top_k
            slope = np.maximum((shares * miss).sum(axis=-1, keepdims=True), 1e-300)
            self.tau = np.clip(self.tau - excess / slope, self.tau / 4, self.tau * 4)
        load: Floats = (1 - np.exp(-self.tau * shares)) * (self.experts / self.top_k)
        return load

    def step(self) -> None:
        """One training step."""
        load, shares, spec = self.load(), self._shares(), self.spec
        move = spec.growth * (load - 1.0)
        if spec.kind == "auxiliary-loss":
            move = move - spec.rate * self.experts * shares * (load - (load * shares).sum(axis=-1, keepdims=True))
        elif spec.kind == "bias-update":
            move = move - spec.rate * np.sign(load - 1.0)
        elif spec.kind == "z-loss":
            total = self.level + np.log(np.exp(self.logs).sum(axis=-1, keepdims=True))
            push = -2.0 * spec.rate * total * shares
            self.level = self.level + push.mean(axis=-1, keepdims=True)
            move = move + push
        before = self.logs
        after = before + move
        self.logs = np.clip(after - after.mean(axis=-1, keepdims=True), -MOST, MOST)
        resting = spec.rate * 1.01 if spec.kind == "bias-update" and not spec.growth else SETTLED
        if spec.kind == "bias-update" and not spec.growth:
            # A sign never rests: it has settled when every expert changes sides at every other step.
            self.settled = bool(np.abs(np.log(np.maximum(load, 1e-12))).max() <= resting)
        else:
            self.settled = bool(np.abs(self.logs - before).max() <= resting)

    def _shares(self) -> Floats:
        powers = np.exp(self.logs - self.logs.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
