"""A drawn topology: the GPUs of an expert-parallel group, their domains and the fabric, links coloured by their use.

From top to bottom: fabric, NICs, GPUs, scale-up links, domains. Every link is drawn twice, sending left and receiving
right. N domains, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
from altair.typing import ChartType
from numpy.typing import NDArray

from moesim.results import chart_style as style
from moesim.results.chart_style import FONT, INK, WIDTH
from moesim.results.link_use import LinkUse
from moesim.units import show

MOST_RANKS = 64
HEIGHT = 280
_GAP = 1.0
_SIDE = 0.17
_TOP, _GPU, _FOOT, _MARGIN = 2.0, 1.0, 0.0, 0.35
# From little to full: both ends stand out on light and on dark pages, and under colour blindness.
_SCALE = {"domain": [0, 50, 100], "range": ["#4C8FC3", "#E6AB4A", "#C8322B"], "interpolate": "rgb"}
_STEEL = "#8A929C"

Integers = NDArray[np.int64]


def topology_chart(use: LinkUse) -> ChartType:
    """Which links one dispatch keeps busy; of many domains an even choice is drawn, the busiest one among them."""
    chosen = shown_ranks(use)
    place = _places(use.domain[chosen])
    parts = [_links(use, chosen, place), _gpus(use, chosen, place), *_domains(use, chosen, place)]
    if use.scale_out:
        parts += _bars([float(place.min())], [float(place.max())], [f"fabric: {use.scale_out}"], _TOP)
    heading = style.title("Links in one dispatch", _subtitle(use, len(chosen)))
    height = round(HEIGHT * (_top(use) - _FOOT + 2 * _MARGIN) / (_TOP - _FOOT + 2 * _MARGIN))
    return alt.layer(*parts).properties(width=WIDTH, height=height, title=heading)


def shown_ranks(use: LinkUse) -> Integers:
    """The ranks that are drawn: whole domains, evenly chosen, and the one with the busiest link, up to `MOST_RANKS`."""
    ranks = np.arange(len(use.domain))
    if len(ranks) <= MOST_RANKS:
        return ranks
    size = int((use.domain == use.domain[0]).sum())
    busiest = int(np.argmax(np.max([use.up_send, use.up_receive, use.out_send, use.out_receive], axis=0)))
    if size >= MOST_RANKS:
        even = np.linspace(0, len(ranks) - 1, MOST_RANKS - 1).round().astype(np.int64)
        return np.unique(np.append(even, busiest))
    count = max(1, MOST_RANKS // size)
    even = np.linspace(0, int(use.domain.max()), count).round().astype(np.int64)
    domains = even if use.domain[busiest] in even else np.append(even[: count - 1], use.domain[busiest])
    return np.flatnonzero(np.isin(use.domain, domains))


def _top(use: LinkUse) -> float:
    """Nothing stands above the GPUs of a single domain."""
    return _TOP if use.scale_out else _GPU


def _places(domain: Integers) -> NDArray[np.float64]:
    """Where each rank stands from left to right, with a gap between domains."""
    order = np.unique(domain, return_inverse=True)[1]
    return np.asarray(np.arange(len(domain)) + _GAP * order, np.float64)


def _links(use: LinkUse, chosen: Integers, place: NDArray[np.float64]) -> alt.Chart:
    """Two strokes a link of every GPU that is drawn."""
    rows: dict[str, list[Any]] = {name: [] for name in ("x", "from", "to", "use", "gpu", "link", "reads")}
    tiers = (
        ("NIC", use.scale_out, use.out_send, use.out_receive, (_GPU, _TOP), use.bytes_out),
        ("scale-up", use.scale_up, use.up_send, use.up_receive, (_GPU, _FOOT), use.bytes_up),
    )
    for name, present, sending, receiving, (begin, end), moved in tiers:
        if not present:
            continue
        for way, shares, side in (("sending", sending, -_SIDE), ("receiving", receiving, _SIDE)):
            rows["x"] += (place + side).tolist()
            rows["from"] += [begin] * len(chosen)
            rows["to"] += [end] * len(chosen)
            rows["use"] += (100 * shares[chosen]).tolist()
            rows["gpu"] += use.gpu[chosen].tolist()
            rows["link"] += [f"{name}, {way}"] * len(chosen)
            sent = [f", {show(float(size), 'B')}" if way == "sending" else "" for size in moved[chosen]]
            busy = [show(float(share), "fraction") for share in shares[chosen]]
            rows["reads"] += [f"{share} of the dispatch{size}" for share, size in zip(busy, sent, strict=True)]
    legend = style.legend("busy (% of the dispatch)", orient="bottom", gradientLength=180)
    chart: alt.Chart = (
        alt.Chart(style.rows(5, **rows))
        .mark_rule(strokeWidth=max(1.5, min(6.0, 130 / len(chosen))))
        .encode(
            x=alt.X("x:Q", axis=None, scale=style.span(float(place.min()) - 0.8, float(place.max()) + 0.8)),
            y=alt.Y("from:Q", axis=None, scale=style.span(_FOOT - _MARGIN, _top(use) + _MARGIN)),
            y2="to:Q",
            color=alt.Color("use:Q", scale=_SCALE, legend=legend),
            tooltip=[alt.Tooltip("gpu:Q", title="GPU"), "link:N", alt.Tooltip("reads:N", title="busy")],
        )
    )
    return chart


def _gpus(use: LinkUse, chosen: Integers, place: NDArray[np.float64]) -> alt.Chart:
    across = 0.62 * WIDTH / float(np.ptp(place) + 1.6)
    size = float(np.clip(across, 7, 22) ** 2)
    domain = [f"domain {number}" for number in use.domain[chosen]]
    data = style.rows(x=place, y=[_GPU] * len(place), gpu=use.gpu[chosen], rank=chosen, domain=domain)
    mark = alt.Chart(data).mark_square(size=size, color=_STEEL, opacity=1)
    squares: alt.Chart = mark.encode(
        x="x:Q", y="y:Q", tooltip=[alt.Tooltip("gpu:Q", title="GPU"), alt.Tooltip("rank:Q"), alt.Tooltip("domain:N")]
    )
    return squares


def _domains(use: LinkUse, chosen: Integers, place: NDArray[np.float64]) -> list[alt.Chart]:
    """A bar below the GPUs of every domain; those of many domains carry their number alone."""
    domain = use.domain[chosen]
    numbers = np.unique(domain)
    if not use.scale_up:
        return []
    ends = [place[domain == number] for number in numbers]
    word = "domain " if len(numbers) <= 4 else ""
    names = [f"{word}{number}" for number in numbers]
    if len(numbers) == 1:
        names = [f"scale-up domain: {use.scale_up}"]
    return _bars([float(end.min()) for end in ends], [float(end.max()) for end in ends], names, _FOOT)


def _bars(begin: Sequence[float], end: Sequence[float], names: Sequence[str], at: float) -> list[alt.Chart]:
    """Switches as bars with their names beyond them."""
    middle = [(low + high) / 2 for low, high in zip(begin, end, strict=True)]
    data = style.rows(
        begin=[low - 0.4 for low in begin], end=[high + 0.4 for high in end], x=middle, y=[at] * len(begin), name=names
    )
    base = alt.Chart(data)
    bars = base.mark_rule(strokeWidth=7, color=_STEEL, strokeCap="round").encode(x="begin:Q", x2="end:Q", y="y:Q")
    below = at == _FOOT
    text = base.mark_text(fontSize=FONT, color=INK, dy=16 if below else -14)
    return [bars, text.encode(x="x:Q", y="y:Q", text="name:N")]


def _subtitle(use: LinkUse, drawn: int) -> str:
    ranks = len(use.domain)
    said = f"{use.dispatcher}, {show(use.seconds, 's')}, mean of layers"
    return f"{said}; {drawn} of {ranks} ranks are drawn" if drawn < ranks else f"{said}; {ranks} ranks"
