"""Group-limited choice: only experts of a token's best groups may be chosen (DeepSeek-V2 report, section 2.2.2;
DeepSeek-V3 report, section 2.1.2, and its inference code)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.specs.model import RouterSpec

Floats = NDArray[np.float64]


def check_groups(spec: RouterSpec, experts: int, top_k: int) -> None:
    """Raise where the groups do not divide the experts, or the kept ones hold fewer than K."""
    if experts % spec.groups:
        raise UserError(f"router: {spec.groups} groups do not divide {experts} experts evenly")
    if spec.top_groups > spec.groups:
        raise UserError(f"router: top_groups is {spec.top_groups}, but there are only {spec.groups} groups")
    within = spec.top_groups * experts // spec.groups
    if within < top_k:
        raise UserError(
            f"router: the {spec.top_groups} best groups hold {within} experts, fewer than top_k = {top_k};"
            " raise top_groups or lower groups"
        )


def limit_to_groups(
    scores: Floats, groups: int, top_groups: int, group_score: Literal["max", "top2-sum"] = "max"
) -> Floats:
    """The scores [T, E] with -inf outside each token's best groups; of equal groups the lower one is better.

    A group's score is its highest score ("max") or the sum of its two highest ("top2-sum").
    """
    T, E = scores.shape
    grouped = scores.reshape(T, groups, E // groups)
    if group_score == "max":
        group_scores = grouped.max(axis=2)
    else:
        best = min(2, E // groups)
        group_scores = np.partition(grouped, E // groups - best, axis=2)[:, :, -best:].sum(axis=2)
    order = np.argsort(-group_scores, axis=1, kind="stable")
    kept = np.zeros((T, groups), dtype=bool)
    np.put_along_axis(kept, order[:, :top_groups], True, axis=1)
    return np.where(kept[:, :, None], grouped, -np.inf).reshape(T, E)
