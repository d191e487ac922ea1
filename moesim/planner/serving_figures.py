"""What limits and objectives read of deployments, the limits themselves, and which of them binds.

C candidates, L limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moesim.planner.serving_reading import Question
from moesim.planner.serving_spec import LATENCIES, Objective
from moesim.provenance import Quantity

Floats = NDArray[np.float64]
HOUR, MILLION = 3600.0, 1e6
FAR = 1e9
"""Counts as infinitely far over a limit."""
STEP = 0.05
"""Shares of a latency limit that are as good as each other."""
AXES = ("cost", "time to first token", "time per output token", "tokens/s/GPU")


@dataclass(frozen=True)
class Figures:
    """Numbers of candidates [C]: GPUs of the cluster, dollars an hour (GPUs where there are no prices), dollars (or
    GPU-hours) a million output tokens, output tokens/s/GPU, latencies, and two shares: what weights and buffers take of
    the memory given to an engine (or, above 1, how far it is from holding a request), and requests that come over those
    that can be served. `missed`: share of requests that break a latency limit."""

    gpus: Floats
    hourly: Floats
    cost: Floats
    per_gpu: Floats
    time_to_first_token: Floats
    time_to_first_token_p99: Floats
    time_per_output_token: Floats
    time_per_output_token_p99: Floats
    request_latency: Floats
    request_latency_p99: Floats
    memory_share: Floats
    rate_share: Floats
    missed: Floats

    def __len__(self) -> int:
        return len(self.gpus)

    def rows(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> Figures:
        """Some of the candidates."""
        return Figures(*(getattr(self, one.name)[chosen] for one in fields(self)))


def joined(several: list[Figures]) -> Figures:
    """Figures of several groups of candidates as one."""
    return Figures(*(np.concatenate([getattr(one, each.name) for one in several]) for each in fields(Figures)))


def priced(
    hourly: Floats, gpus: Floats, tokens: Floats, shares: tuple[Floats, Floats], times: Mapping[str, Floats]
) -> Figures:
    """Figures by the closed form, which knows means alone: they stand for the hundredths too. `tokens` a second;
    `shares` of memory and of the rate."""
    cost = hourly / HOUR / np.maximum(tokens, 1e-300) * MILLION
    none = np.zeros_like(gpus)
    both = {f"{name}{end}": times[name] for name in LATENCIES for end in ("", "_p99")}
    return Figures(gpus=gpus, hourly=hourly, cost=cost, per_gpu=tokens / gpus, memory_share=shares[0],
                   rate_share=shares[1], missed=none, **both)  # fmt: skip


def answered(summary: Mapping[str, Quantity], gpus: int, rate: float, screened: Figures, pace: float | None) -> Figures:
    """The figures of one answered candidate; `rate`: what a GPU costs an hour; `screened`: what was known of it;
    `pace`: output tokens/s where arrivals set it, so that a sample's noise decides nothing."""
    gpu_hours = summary.get("gpu_hours_per_million_output_tokens")
    cost = summary.get("cost_per_million_output_tokens", gpu_hours)
    per_gpu = summary.get("output_tokens_per_second_per_gpu")
    times: dict[str, float] = {}
    lost = "request_latency" not in summary  # no steady state
    for name in LATENCIES:
        none = 0.0 if name == "time_per_output_token" and not lost else np.inf
        mean = summary[name].value if name in summary else none
        times |= {name: mean, f"{name}_p99": summary[f"{name}_p99"].value if f"{name}_p99" in summary else mean}
    good = summary.get("goodput_fraction")
    paid = cost.value if cost else np.inf
    done = per_gpu.value if per_gpu else 0.0
    if pace is not None and not lost:
        paid, done = gpus * rate / HOUR / pace * MILLION, pace / gpus
    own = {
        "gpus": float(gpus),
        "hourly": gpus * rate,
        "cost": paid,
        "per_gpu": done,
        **times,
        "memory_share": max(float(screened.memory_share[0]), summary["fits_in_memory"].value),
        "rate_share": max(float(screened.rate_share[0]), 1.0 + 1e-9) if lost else 0.0,
        "missed": 1.0 - good.value if good else 0.0,
    }
    return Figures(**{name: np.array([value]) for name, value in own.items()})


@dataclass(frozen=True)
class Limit:
    """One limit: its key in a plan, what is allowed of which figure, and its unit."""

    key: str
    allowed: float
    figure: str
    unit: str

    def excess(self, figures: Figures) -> Floats:
        """The figure over what is allowed [C]; above 1 the limit is broken."""
        values = np.asarray(getattr(figures, self.figure), np.float64)
        return values / self.allowed if self.allowed > 0 else np.where(values > 0, np.inf, 0.0)


def limits_of(question: Question) -> tuple[Limit, ...]:
    """The limits in force; memory and the rate of requests always are."""
    said = question.limits
    found = [Limit("memory", 1.0 - (said.memory_headroom or 0.0), "memory_share", "fraction"),
             Limit("rate", 1.0, "rate_share", "")]  # fmt: skip
    for name in LATENCIES:
        for key in (name, f"{name}_p99"):
            allowed = getattr(said, key)
            found += [] if allowed is None else [Limit(key, allowed, key, "s")]
    if said.goodput_fraction is not None:
        found.append(Limit("goodput_fraction", 1.0 - said.goodput_fraction, "missed", "fraction"))
    others = (("dollars_per_hour", "hourly", "$"), ("dollars_per_million_tokens", "cost", "$"), ("gpus", "gpus", ""))
    for key, figure, unit in others:
        allowed = getattr(said, key)
        found += [] if allowed is None else [Limit(key, float(allowed), figure, unit)]
    return tuple(found)


def excesses(limits: tuple[Limit, ...], figures: Figures) -> Floats:
    """Figure over allowed [C, L]; what nobody could tell is infinitely far over."""
    found = np.stack([limit.excess(figures) for limit in limits], axis=1)
    return np.where(np.isnan(found), np.inf, found)


def binding(excess: Floats) -> NDArray[np.int64]:
    """-1 where every limit is kept, else the place of the limit that is broken most, the first of equal ones [C]."""
    return np.where(excess.max(axis=1) > 1.0, excess.argmax(axis=1), -1)


def distance(excess: Floats) -> Floats:
    """How far candidates are from keeping all limits [C]: 0 where they do, else the logarithm of how many times over
    what is allowed they are, over all broken limits together."""
    return np.asarray(np.log(np.clip(excess, 1.0, FAR)).sum(axis=1))


def strain(limits: tuple[Limit, ...], figures: Figures) -> tuple[Floats, Floats]:
    """How near candidates come to their latency limits [C]: the largest share of one that they use, in steps, and
    the shares' sum; without such limits the request's latency."""
    timed = [limit.excess(figures) for limit in limits if limit.unit == "s"] or [figures.request_latency]
    largest = np.max(timed, axis=0) if any(limit.unit == "s" for limit in limits) else np.zeros(len(figures))
    return np.ceil(largest / STEP), np.sum(timed, axis=0)


def objective_of(objective: Objective, figures: Figures) -> Floats:
    """What an objective wants small [C]."""
    known = {"cost": figures.cost, "fewest-gpus": figures.gpus, "latency": figures.request_latency}
    return known.get(objective, -figures.per_gpu)


def best_first(objective: Objective, limits: tuple[Limit, ...], figures: Figures) -> NDArray[np.int64]:
    """Places of candidates in the order of the objective; of equal ones (to four digits) the one that costs less, then
    the one farthest from its latency limits comes first."""
    own, cost = (_rounded(values) for values in (objective_of(objective, figures), figures.cost))
    largest, together = strain(limits, figures)
    return np.lexsort((figures.gpus, together, largest, cost, own))


def _rounded(values: Floats) -> Floats:
    """To four digits, so that the last ones decide nothing."""
    finite = np.where(np.isfinite(values) & (values != 0), values, 1.0)
    size = 10.0 ** (np.floor(np.log10(np.abs(finite))) - 3)
    return np.where(np.isfinite(values), np.round(np.where(values == 0, 0.0, finite) / size) * size, values)


def axes_of(figures: Figures) -> Floats:
    """What `AXES` names [C, 4], each to be small."""
    return np.stack([_rounded(figures.hourly), figures.time_to_first_token, figures.time_per_output_token,
                     -_rounded(figures.per_gpu)], axis=1)  # fmt: skip
