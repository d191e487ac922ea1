"""How the pictures look: colours, fonts, units of axes; plain data for altair, which is not imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.units import scale

WIDTH = 640
INK = "#333333"
FONT = 12

# Okabe and Ito's eight colours, and Tol's for what they do not cover: told apart under colour blindness.
# The first word found in a name decides.
_COLOURS: dict[str, str] = {
    "expert weights": "#56B4E9",
    "expert gradients": "#CC79A7",
    "expert optimizer": "#A8A8A8",
    "dispatch": "#D55E00",
    "combine": "#E69F00",
    "expert": "#009E73",
    "attention": "#0072B2",
    "router": "#F0E442",
    "dense": "#56B4E9",
    "embed": "#88CCEE",
    "head": "#44AA99",
    "logits": "#44AA99",
    "tensor": "#CC79A7",
    "gather": "#AA4499",
    "data": "#882255",
    "gradient": "#882255",
    "send": "#999933",
    "bubble": "#C8C8C8",
    "optimizer": "#555555",
    "weights": "#0072B2",
    "activation": "#E69F00",
    "libraries": "#DDCC77",
    "rank": "#0072B2",
    "forward": "#0072B2",
    "backward": "#E69F00",
    "weight": "#009E73",
    "step": "#555555",
}
_SPARE = ("#117733", "#CC79A7", "#DDCC77", "#332288", "#44AA99", "#AA4499", "#999999")


def colours(names: Sequence[str]) -> list[str]:
    """One colour a name, the same in every picture for the names that are known; the others take spare ones."""
    chosen: dict[str, str] = {}
    for name in sorted(names):
        known = next((colour for word, colour in _COLOURS.items() if word in name.lower()), None)
        free = [colour for colour in (known, *_SPARE) if colour and colour not in chosen.values()]
        chosen[name] = free[0] if free else _SPARE[len(chosen) % len(_SPARE)]
    return [chosen[name] for name in names]


def palette(names: Sequence[str]) -> dict[str, Any]:
    """A colour scale over the names."""
    return {"domain": list(names), "range": colours(names)}


def span(low: float, high: float, **options: Any) -> dict[str, Any]:
    """A position scale from `low` to `high` and no further."""
    return {"domain": [low, high], "nice": False, "zero": False, **options}


def title(text: str, below: str) -> dict[str, Any]:
    """A title with a quieter line below it."""
    quiet = {"subtitle": below, "subtitleFontSize": FONT, "subtitleColor": "#555555"}
    return {"text": text, "anchor": "start", "fontSize": 15, "offset": 10, **quiet}


def axis(label: str | None, **options: Any) -> dict[str, Any]:
    """An axis in the common font size."""
    text = {"labelFontSize": FONT, "titleFontSize": FONT, "titleFontWeight": "normal", "labelOverlap": True}
    return {"title": label, "tickCount": 8, **text, **options}


def legend(label: str | None = None, **options: Any) -> dict[str, Any]:
    """A legend in the common font size."""
    return {"title": label, "labelFontSize": FONT, "titleFontSize": FONT, "labelLimit": 260, **options}


def axis_unit(values: Sequence[float], unit: str) -> tuple[float, str]:
    """Size and symbol of the unit that suits the largest value."""
    return scale(max(values), unit)


def rows(digits: int = 7, /, **columns: Any) -> dict[str, Any]:
    """Inline data of one row an entry; numbers keep `digits` significant digits."""
    lists = [[_short(value, digits) for value in column] for column in columns.values()]
    return {"values": [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]}


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}")
    return int(value) if isinstance(value, (int, np.integer)) else str(value)
