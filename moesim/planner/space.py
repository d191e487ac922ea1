"""All candidates of a question: every combination is counted, legal ones are kept as a compact table of rows.

Degrees and cluster go first: where they alone are illegal, all settings under them are counted and never written out.
C candidates, F columns (`COLUMNS`, those of `Candidates`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.planner.legality import RULES, Facts, reasons, resolved
from moesim.planner.reading import Question
from moesim.randomness import Streams
from moesim.scenario.checks import problems
from moesim.screening import Candidates, scenario_of
from moesim.screening.reference import is_known

Rows = NDArray[np.int32]

COLUMNS = tuple(field.name for field in fields(Candidates))
LAYOUT = ("tensor", "pipeline", "expert", "expert_tensor", "context")
SETTINGS = ("micro_batch", "virtual_pipeline", "schedule", "capacity", "dispatcher", "overlap")
FREE = "recompute"
"""The column that no rule asks about."""
SAME = "same"
"""Reason of a candidate that says the same as another: a setting without effect."""
NOT_SCREENED = "not screened"
"""Reason of a legal candidate beyond the budget."""
PLACEMENT = "placement"
"""Reason of a layout that the scenario's placement does not suit."""
DRAWN = 0.5
"""Share of the budget that is drawn where there are more legal candidates; the rest goes to neighbours of the best."""
MOST_COMBINATIONS, MOST_OF_A_KIND = 300_000_000, 1_000_000
_BLOCK = 1 << 19
_IDLE: dict[str, Any] = {
    "expert_communication": False,
    "two_batch": False,
    "shared_experts": False,
    "weight_gradients": "with-backward",
}
"""What an overlap says of exchanges, where there are none."""
_WHOLE: dict[str, Any] = {"tensor_parallel": None}
"""What it says of tensor-parallel collectives, where there are none."""


@dataclass(frozen=True)
class Space:
    """Legal candidates [C, F] within the budget, and how many of all combinations fell to which reason."""

    rows: Rows
    total: int
    rejected: dict[str, int]


def candidates(rows: Rows) -> Candidates:
    """The rows as the screening takes them."""
    return Candidates(*(rows[:, place].astype(np.int64) for place in range(len(COLUMNS))))


def enumerate_space(question: Question) -> Space:
    """Every combination of the question's axes, judged; of more legal ones than the budget a share is drawn. The
    scenario's own layout is always one of them."""
    _check_size(question)
    rejected: Counter[str] = Counter()
    budget = question.spec.candidates
    kept: list[Rows] = []
    total = 0
    for cluster in range(len(question.choices.clusters)):
        total += prod(len(values) for values in axes_of_cluster(question, cluster).values())
        share = (budget - sum(map(len, kept))) // (len(question.choices.clusters) - cluster)
        chance = Streams(question.base.simulation.seed).generator(f"planner/cluster{cluster}")
        kept.append(_drawn(_legal(question, cluster, rejected), share, chance))
    rows = np.concatenate(kept)
    suits = placeable(question, rows)
    rejected[PLACEMENT] += int((~suits).sum())
    rows = rows[suits]
    own = own_row(question)
    if own is not None and not (rows == own).all(axis=1).any():
        rows = np.concatenate([rows, own])
        total += int(not within(question, own)[0])
    rejected[NOT_SCREENED] += total - len(rows) - sum(rejected.values())
    return Space(rows, total, {code: count for code, count in rejected.items() if count})


def axes_of_cluster(question: Question, cluster: int) -> dict[str, NDArray[np.int64]]:
    """The values of every column on one cluster."""
    axes = {name: np.array(values, dtype=np.int64) for name, values in question.axes[cluster].items()}
    return {**axes, "cluster": np.array([cluster])}


def placeable(question: Question, rows: Rows) -> NDArray[np.bool_]:
    """Whether the scenario's placement suits legal rows [C]; experts held in order suit all."""
    if is_known(question.base):
        return np.ones(len(rows), dtype=np.bool_)
    base, choices, few = question.base, question.choices, candidates(rows)
    found = [not problems(scenario_of(base, choices, few, row)) for row in range(len(rows))]
    return np.array(found, dtype=np.bool_)


def own_row(question: Question) -> Rows | None:
    """The scenario's own layout as a row [1, F], None where there is none or a rule refuses it."""
    if question.own is None:
        return None
    row = canonical(question, np.array([question.own], dtype=np.int32))
    return row if judge(question, row)[0] == 0 else None


def within(question: Question, rows: Rows) -> NDArray[np.bool_]:
    """Whether rows have only values that are searched on their cluster [C]; the scenario's own may have others."""
    found = np.zeros(len(rows), dtype=np.bool_)
    for cluster in np.unique(rows[:, COLUMNS.index("cluster")]):
        axes = axes_of_cluster(question, int(cluster))
        found |= np.all([np.isin(rows[:, place], axes[name]) for place, name in enumerate(COLUMNS)], axis=0)
    return found


def _legal(question: Question, cluster: int, rejected: Counter[str]) -> Iterator[Rows]:
    """Blocks of legal candidates on one cluster."""
    axes = axes_of_cluster(question, cluster)
    free = axes[FREE]
    settings = _product([axes[name] for name in SETTINGS])
    plain = np.ones((prod(len(axes[name]) for name in LAYOUT), len(COLUMNS)), dtype=np.int32)
    _put(plain, ("cluster",), np.full((len(plain), 1), cluster))
    _put(plain, LAYOUT, _product([axes[name] for name in LAYOUT]))
    broken = judge(question, plain, layout=True)
    _count(broken, rejected, len(settings) * len(free))
    layouts = plain[broken == 0]
    step = max(1, _BLOCK // len(settings))
    for first in range(0, len(layouts), step):
        block = np.repeat(layouts[first : first + step], len(settings), axis=0)
        _put(block, SETTINGS, np.tile(settings, (len(layouts[first : first + step]), 1)))
        broken = judge(question, block, layout=False)
        _count(broken, rejected, len(free))
        legal = block[broken == 0]
        single = legal[_first_of_each(question, legal)]
        rejected[SAME] += (len(legal) - len(single)) * len(free)
        whole = np.repeat(single, len(free), axis=0)
        _put(whole, (FREE,), np.tile(free, len(single))[:, None])
        yield whole


def judge(question: Question, rows: Rows, layout: bool | None = None) -> NDArray[np.int8]:
    """The reason of every row (0: legal): by the rules of layouts, by the others, or by all [C]."""
    rules = [rule for rule in RULES if layout is None or rule.layout == layout]
    return reasons(Facts(question.base, question.choices, candidates(rows)), rules)


def _product(axes: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")], axis=1)


def _put(rows: Rows, names: tuple[str, ...], values: NDArray[np.int64]) -> None:
    rows[:, [COLUMNS.index(name) for name in names]] = values


def _count(broken: NDArray[np.int8], rejected: Counter[str], times: int) -> None:
    for place, count in enumerate(np.bincount(broken, minlength=1 + len(RULES))[1:]):
        rejected[RULES[place].code] += int(count) * times


def _first_of_each(question: Question, rows: Rows) -> NDArray[np.int64]:
    """Places of the candidates that are left where of those which say the same only the first stays."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    plain = canonical(question, rows)
    keys = _keys(plain)
    same = (plain == rows).all(axis=1)
    known, others = np.sort(keys[same]), np.flatnonzero(~same)
    at = np.minimum(np.searchsorted(known, keys[others]), max(0, len(known) - 1))
    lone = others[known[at] != keys[others]] if len(known) else others
    first = lone[np.unique(keys[lone], return_index=True)[1]]
    return np.sort(np.concatenate([np.flatnonzero(same), first]))


def _keys(rows: Rows) -> NDArray[Any]:
    """One sortable key a row, equal where the rows are."""
    sizes = [int(size) for size in rows.max(axis=0) + 1]
    if prod(sizes) < 1 << 62:
        return np.asarray(np.ravel_multi_index(tuple(rows.T), tuple(sizes)))
    return rows.copy().view([("", rows.dtype)] * rows.shape[1]).ravel()


def canonical(question: Question, rows: Rows) -> Rows:
    """The rows with one name for every setting, and none for settings without effect; equal rows are one candidate.

    A schedule is its resolved kind, zero-bubble-v has one name for its chunks, and a single stage has no bubble that a
    schedule could fill. Without exchanges there is no dispatcher and nothing to hide, without tensor parallelism no
    collective of its own, without experts no capacity.
    """
    column = {name: place for place, name in enumerate(COLUMNS)}
    facts, plain = Facts(question.base, question.choices, candidates(rows)), rows.copy()
    at, chunked = rows[:, column["schedule"]], facts.candidates.virtual_pipeline > 1
    plain[:, column["schedule"]] = np.where(
        chunked, _first_named(question, True)[at], _first_named(question, False)[at]
    )
    plain[facts.kind_is("zero-bubble-v"), column["virtual_pipeline"]] = 1
    single = (rows[:, column["pipeline"]] == 1) & ~facts.kind_is("gpipe")
    plain[single, column["schedule"]] = _first_paired(question)
    alone, whole = rows[:, column["expert"]] == 1, rows[:, column["tensor"]] == 1
    plain[alone, column["dispatcher"]] = 0
    for idle, chosen in ((_IDLE, alone & ~whole), (_WHOLE, whole & ~alone), (_IDLE | _WHOLE, alone & whole)):
        plain[chosen, column["overlap"]] = _alike(question, idle)[rows[chosen, column["overlap"]]]
    if not question.base.model.is_moe:
        plain[:, column["capacity"]] = 0
    return plain


def _first_named(question: Question, chunked: bool) -> NDArray[np.int32]:
    """For every schedule the first that means the same."""
    kinds = [resolved(schedule.kind, chunked) for schedule in question.choices.schedules]
    return np.array([kinds.index(kind) for kind in kinds], dtype=np.int32)


def _first_paired(question: Question) -> int:
    """The first schedule that is not GPipe, which alone keeps all microbatches of a single stage at once."""
    return next((at for at, schedule in enumerate(question.choices.schedules) if schedule.kind != "gpipe"), 0)


def _alike(question: Question, idle: dict[str, Any]) -> NDArray[np.int32]:
    """For every overlap the first that says the same where some of its fields do nothing."""
    plain = [spec.model_copy(update=idle) for spec in question.choices.overlaps]
    return np.array([plain.index(spec) for spec in plain], dtype=np.int32)


def _drawn(blocks: Iterator[Rows], share: int, chance: np.random.Generator) -> Rows:
    """The blocks joined, in their order; of more rows than the share so many are drawn as leave room for neighbours.

    Every row draws a number and the lowest stay, so that no more than twice the share is ever held.
    """
    rows, numbers, seen = np.zeros((0, len(COLUMNS)), dtype=np.int32), np.zeros(0), 0
    for block in blocks:
        rows, numbers = np.concatenate([rows, block]), np.concatenate([numbers, chance.random(len(block))])
        seen += len(block)
        if len(rows) > 2 * share:
            lowest = np.sort(np.argpartition(numbers, share)[:share])
            rows, numbers = rows[lowest], numbers[lowest]
    if seen <= share:
        return rows
    return rows[np.sort(np.argsort(numbers, kind="stable")[: max(1, round(share * DRAWN))])]


def _check_size(question: Question) -> None:
    """Raises `UserError` where lists make more combinations than can be looked through."""
    for cluster in range(len(question.choices.clusters)):
        axes = axes_of_cluster(question, cluster)
        sizes = [prod(len(axes[name]) for name in names) for names in (LAYOUT, SETTINGS)]
        whole = sizes[0] * sizes[1] * len(axes[FREE]) * len(question.choices.clusters)
        if max(sizes) > MOST_OF_A_KIND or whole > MOST_COMBINATIONS:
            raise UserError(
                f"{question.spec.name}: search: about {whole:,} combinations, {sizes[0]:,} layouts x {sizes[1]:,}"
                f" settings on a cluster; at most {MOST_COMBINATIONS:,}, {MOST_OF_A_KIND:,} of either kind, can be"
                " looked through: shorten the lists"
            )
