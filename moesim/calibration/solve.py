"""Robust least squares on log time: finds the coefficients that measured rows determine, and says which they do not.

n rows, c coefficients, all positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]
Name = tuple[str, ...]
"""A coefficient: the calibration's name and the path to the number in it."""
Predict = Callable[[Mapping[Name, float]], Floats]

# Deviations of the log time beyond this count in proportion, not squared: a blocked run must not bend the law.
ROBUST = 0.1
# No measurement is nearer than this to what it measures, whatever the misses of a few rows say.
NOISE_FLOOR = 0.01
# A coefficient whose relative standard error is larger is not determined by the rows.
DETERMINED = 0.25
ALIKE = 0.9
# A coefficient may move this far from what is shipped, as a factor, before its rows are taken to be of something else.
FARTHEST = 30.0
# A coefficient that moves the log time of a row by less than this, root mean square, is felt by no row.
FELT = 1e-3
# Steps of a descent before it is asked whether a coefficient is determined at all.
_STEPS = 8
# Descents at most.
_DESCENTS = 12


@dataclass(frozen=True)
class Solution:
    """Coefficients by name, their relative standard errors, and those kept at their start with the reason."""

    values: dict[Name, float]
    errors: dict[Name, float]
    kept: dict[Name, str]
    predicted: Floats


def solve(start: Mapping[Name, float], predict: Predict, measured: Floats, weights: Floats) -> Solution:
    """The coefficients, of those in `start`, under which `predict` [n] comes nearest to `measured` [n] seconds.

    `weights` [n] count a row. What the rows leave open is kept at its start, the worst determined one first.
    """
    felt = _felt(start, predict)
    free = [name for name in start if felt[name]]
    kept = {name: "no row depends on it" for name in start if not felt[name]}
    found, errors = dict(start), dict[Name, float]()
    descents = 0
    while free:
        if measured.size <= len(free):
            name = free.pop()
            kept[name] = f"{measured.size} rows are too few for it"
            continue
        found, errors, ended = _descend(start, found, free, (predict, measured, weights))
        largest = max(errors.values())
        if largest <= DETERMINED:
            descents += 1
            if ended or descents == _DESCENTS:
                break
            continue
        # Of those that only count together, the one named last goes.
        worst = [name for name in free if errors[name] >= ALIKE * largest][-1]
        free.remove(worst)
        kept[worst] = f"the rows do not determine it (standard error {min(errors[worst], 9.99):.0%})"
        found = {**found, worst: start[worst]}
    final = {**start, **{name: found[name] for name in free}}
    return Solution(final, {name: errors[name] for name in free}, kept, predict(final))


def _felt(start: Mapping[Name, float], predict: Predict) -> dict[Name, bool]:
    """Whether each coefficient matters to any row, in a wide reach about its start."""
    here, felt = np.log(predict(start)), {}
    for name, value in start.items():
        moved = [np.log(predict({**start, name: value * factor})) - here for factor in (1 / FARTHEST, FARTHEST)]
        felt[name] = bool(max(float(np.sqrt(np.mean(move**2))) for move in moved) > FELT)
    return felt


def _descend(
    start: Mapping[Name, float], at: Mapping[Name, float], free: Sequence[Name], rows: tuple[Predict, Floats, Floats]
) -> tuple[dict[Name, float], dict[Name, float], bool]:
    """Some steps of a robust descent over the free coefficients' logs from `at`; their relative standard errors there,
    and whether the descent has ended."""
    predict, measured, weights = rows
    goal, root = np.log(measured), np.sqrt(weights / weights.mean())

    def misses(logs: Floats) -> Floats:
        trial = {**start, **dict(zip(free, np.exp(logs).tolist(), strict=True))}
        return np.asarray((np.log(predict(trial)) - goal) * root)

    shipped = np.log([start[name] for name in free])
    reach = np.log(FARTHEST)
    answer = least_squares(
        misses,
        np.clip(np.log([at[name] for name in free]), shipped - 0.999 * reach, shipped + 0.999 * reach),
        bounds=(shipped - reach, shipped + reach),
        loss="soft_l1",
        f_scale=ROBUST,
        x_scale="jac",
        max_nfev=_STEPS,
        xtol=1e-6,
        ftol=1e-6,
    )
    logs = np.asarray(answer.x, dtype=np.float64)
    errors = _standard_errors(np.asarray(answer.jac), misses(logs))
    # Rounded, so that another build of the linear algebra writes the same file.
    values = [float(f"{value:.4g}") for value in np.exp(logs)]
    found = {**start, **dict(zip(free, values, strict=True))}
    return found, dict(zip(free, errors.tolist(), strict=True)), answer.status > 0


def _standard_errors(jacobian: Floats, misses: Floats) -> Floats:
    """Standard error [c] of each log coefficient from a robust scale of the misses; infinite where it has no effect."""
    rows, count = jacobian.shape
    sizes = np.linalg.norm(jacobian, axis=0)
    known = sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))
    errors = np.full(count, np.inf)
    if not known.any():
        return errors
    scaled = jacobian[:, known] / sizes[known]
    scale = 1.4826 * float(np.median(np.abs(misses))) * np.sqrt(rows / max(1, rows - count))
    # A degenerate direction gets a variance of 1e12 rather than none.
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    variance = (vectors**2 / np.maximum(values, 1e-12)).sum(axis=1)
    errors[known] = max(scale, NOISE_FLOOR) * np.sqrt(variance) / sizes[known]
    return errors
