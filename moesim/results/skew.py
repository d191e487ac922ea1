"""What unequal routing costs: the step against itself at perfectly balanced routing, and what the pipeline makes of it.

A hot rank delays its group at the next exchange, so its pipeline rank, and through the schedule the whole step. With W
the seconds of a pipeline rank's own slots (waiting for its group included, for other pipeline ranks not), mean over
pipeline ranks, the bubble amplification is

    (step - even step) / (W - even W),    W = step - bubble.

It is 1 without a pipeline; (M + P - 1) / M where P ranks are delayed alike in each of M microbatches under 1F1B; up to
P where one of them is; below 1 where bubbles that are there anyway absorb a part.
"""

from __future__ import annotations

import numpy as np

from moesim.provenance import Basis, Quantity, worst
from moesim.results.account import Account
from moesim.results.observed import EvenStep
from moesim.results.resampling import EXACT
from moesim.results.uncertainty import Uncertainty, ranged
from moesim.units import show

LEAST_SHARE = 0.03
"""Own work that routing must add, as a share of the step, to be divided by: the roads differ by up to 2 % of a step."""


def skew(account: Account, uncertainty: Uncertainty, *, drops: bool) -> dict[str, Quantity]:
    """Time and share that better balance would give back, and the amplification where routing adds enough."""
    even, profile = account.observed.even, account.scenario.routing.load
    if even is None:
        return {}
    basis = worst(["fitted", profile.basis(*profile.law)])
    lost = account.step_seconds - even.seconds
    why = "this step minus the same step at perfectly balanced routing"
    if drops:
        why += "; dropped copies are work saved"
    time = ranged(lost, "s", basis, why, band=uncertainty.laws, margin=uncertainty.steps)
    share = time.scaled(
        1.0 / account.step_seconds, "fraction", "of the step, that perfectly balanced routing gives back"
    )
    found = {"skew_time": time, "skew_fraction": share}
    amplified = _amplification(account, uncertainty, even, basis)
    return found if amplified is None else {**found, "bubble_amplification": amplified}


def _amplification(account: Account, uncertainty: Uncertainty, even: EvenStep, basis: Basis) -> Quantity | None:
    """None where routing adds too little own work to divide by, or no more than the samples leave unknown."""
    lost = account.step_seconds - even.seconds
    added = lost - (account.observed.waited.get("bubble", 0.0) - even.bubble)
    sampling = uncertainty.sampling
    least = max(LEAST_SHARE * account.step_seconds, 0.0 if sampling is None else sampling.margin(sampling.own).below)
    if added <= least:
        return None
    if account.scenario.parallelism.pipeline == 1:
        return Quantity.exact(1.0, "ratio", "no pipeline to amplify", basis)
    margin = EXACT
    if sampling is not None:
        ratio = (lost + sampling.step) / np.maximum(added + sampling.own, LEAST_SHARE * account.step_seconds)
        margin = sampling.margin(ratio - lost / added)
    note = (
        f"skew time over {show(added, 's')} that unequal routing adds to a pipeline rank's own work (mean);"
        f" {account.scenario.schedule_kind}, {account.scenario.parallelism.pipeline} pipeline ranks"
    )
    return ranged(lost / added, "ratio", basis, note, margin=margin)
