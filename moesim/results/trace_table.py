"""A look at a router's recording, and the judgement of a profile, as text tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.results.table import plain_table, shown
from moesim.routing.profile import RoutingProfile
from moesim.traces.inspection import Inspection
from moesim.units import show

MOST_GROUPS = 20
_BATCHED = ("imbalance", "drops", "domains", "training")


def tables(inspection: Inspection) -> list[Table]:
    """The main numbers, imbalance by batch and ranks, drops by batch and capacity, and parts of the recording."""
    found = [_main(inspection), _imbalance(inspection), _drops(inspection)]
    for title, parts in (("Domains", inspection.domains), ("Training steps", inspection.steps)):
        if len(parts.names) > 1:
            shown_parts = zip(parts.names, parts.copies, parts.shift, parts.max_over_mean, strict=True)
            rows = [
                (shorten(name), f"{copies:,}", show(float(shift), "fraction"), f"{ratio:.3g}")
                for name, copies, shift, ratio in shown_parts
            ]
            left = len(rows) - MOST_GROUPS
            table = _table(title, ("part", "copies", "total variation", "busiest / mean"), rows[:MOST_GROUPS])
            table.caption = Text(f"and {left} more") if left > 0 else None
            found.append(table)
    return found


def goodness_table(profile: RoutingProfile) -> Table:
    """How well a profile draws what it was not fitted on: errors beside those of replay and of popularity alone."""
    rows = [
        (
            row.metric + (f", {row.ranks} ranks" if row.ranks else ""),
            str(row.batch or ""),
            f"{row.recorded:.3g}",
            f"{row.drawn:.3g}",
            *(_error(value, row.unit) for value in (row.error, row.worst_layer, row.replay, row.popularity)),
        )
        for row in profile.meta.goodness
    ]
    heads = ("measure", "sequences", "recorded", "drawn", "error", "worst layer", "replay", "popularity")
    table = _table("Fit on sequences that it has not seen", heads, rows)
    table.caption = Text("errors of: the profile, its worst layer, other recorded sequences, popularity alone")
    return table


def evolution_table(told: Sequence[Mapping[str, float]]) -> Table:
    """How a load evolves over training steps."""
    rows = [(f"{row['step']:,.0f}", f"{row['max_over_mean']:.3g}", f"{row['nearly_idle']:.1%}") for row in told]
    return _table("Load over training, by its law", ("step", "busiest / mean", "nearly idle experts"), rows)


def _error(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.1f} pt" if unit == "points" else f"{100 * value:+.1f} %"


def _main(inspection: Inspection) -> Table:
    meta = inspection.meta
    size = f"{inspection.tokens:,.0f} tokens, {inspection.sequences:,} sequences, {len(meta.model_layers)} layers"
    table = plain_table(f"{size}, {meta.experts} experts, {meta.top_k} a token")
    table.add_column("value", justify="right", no_wrap=True)
    group = ""
    for row in inspection.rows():
        if row[0] in _BATCHED:
            continue
        if row[0] != group:
            group = row[0]
            table.add_section()
            table.add_row(Text(group, style="bold"))
        table.add_row(Text(f"  {row[1]}"), shown(row[2], row[3]))
    table.caption = Text(f"means over layers; {shorten(meta.note, 400)}" if meta.note else "means over layers")
    return table


def _imbalance(inspection: Inspection) -> Table:
    rows = [
        (
            _batch(row.sequences),
            f"{row.ranks} ranks" if row.ranks else "experts",
            *(
                f"{value:.3g}"
                for value in (row.max_over_mean, row.p95, row.mean_over_max, row.ratio_of_sums, row.excess)
            ),
        )
        for row in inspection.imbalance
    ]
    heads = ("batch", "over", "max/mean", "p95", "mean/max", "sums", "excess")
    table = _table("Imbalance", heads, rows)
    table.caption = Text("mean/max: of layers; sums: of means over sums of maxima; excess: (max - mean) / mean")
    return table


def _drops(inspection: Inspection) -> Table:
    shares = np.array([row.dropped for row in inspection.drops]).T
    rows = [
        (f"{factor:g}", *(show(float(share), "fraction") for share in line))
        for factor, line in zip(inspection.drops[0].factors, shares, strict=True)
    ]
    return _table("Copies dropped", ("capacity factor", *(_batch(row.sequences) for row in inspection.drops)), rows)


def _batch(sequences: int) -> str:
    if sequences == 0:
        return "all"
    return "1 sequence" if sequences == 1 else f"{sequences} sequences"


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = plain_table(title, first=heads[0])
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
