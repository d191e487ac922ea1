"""A sensitivity as a text table: inputs, their ranges, and what they do to the answer; it reads well at 80 columns."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.errors import shorten
from moesim.results.chart_style import axis_unit
from moesim.results.table import metric_label, plain_table, shown
from moesim.sweeps.effects import Effect, End, Sensitivity
from moesim.sweeps.fields import FACTOR, number_shown
from moesim.sweeps.nouns import UNITS_OF
from moesim.sweeps.sobol import Index


def table(found: Sensitivity) -> Table:
    """The strongest input first: its ends, the metric at either, and the swing as a share of the scenario's own answer;
    with `sobol` its shares of the variance, alone and in all, instead. Below: why an end has no answer."""
    unit, label = UNITS_OF[found.metric], metric_label(found.metric)
    made = plain_table(
        f"What moves {label} of {shorten(found.name, 40)}, {shown(found.base.value, unit)}", first="input"
    )
    middle = ("at low", "at high") if found.samples is None else ()
    last = () if found.samples is None else ("alone", "total")
    for heading in ("range", *middle, "swing", *last):
        made.add_column(heading, justify="right")
    for effect in found.effects:
        texts = [shorten(effect.input.name, 30), _range(effect)]
        texts += [_at(end, unit) for end in effect.ends] if middle else []
        texts += [_swing(effect, unit)]
        texts += [_share(index) for index in (effect.first, effect.total)] if last else []
        made.add_row(*map(Text, texts))
    lines = [f"{effect.input.name}: {shorten(effect.reason, 300)}" for effect in found.effects if effect.reason]
    if found.samples is not None:
        told = f"90 % confidence, the widest ±{100 * found.widest:.0f} %, {found.samples:,} samples"
        lines.insert(0, f"alone, total: shares of the variance; {told}")
    made.caption = Text("\n".join(lines)) if lines else None
    return made


def _range(effect: Effect) -> str:
    """Both ends in the unit of the low one."""
    low, high = (end.at for end in effect.ends)
    unit = effect.input.unit
    if unit in ("", FACTOR):
        return f"{effect.input.shown(low)}–{f'{high:.3g}' if unit else number_shown(high)}"
    size, symbol = axis_unit([low or high], unit)
    return f"{low / size:.4g}–{high / size:.4g} {symbol}"


def _at(end: End, unit: str) -> str:
    if end.value is None:
        return "no fit" if end.status == "infeasible" else end.status
    return shown(end.value, unit)


def _swing(effect: Effect, unit: str) -> str:
    """As a share of the scenario's own answer, or in its unit where that is nothing; "–" where no end tells."""
    if not effect.answered:
        return "–"
    if not effect.base:
        return shown(effect.swing, unit)
    percent = 100 * effect.swing / abs(effect.base)
    return f"{percent:.0f} %" if percent >= 100 else f"{percent:.2g} %"


def _share(index: Index | None) -> str:
    """A share in percent, and how far it may be off."""
    if index is None:
        return ""
    return f"{round(100 * index.value)} ±{100 * index.reach:.0f} %"
