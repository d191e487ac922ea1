"""How pages show things: numbers with range and basis, charts with their table, problems where they belong."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from moesim.errors import Problem
from moesim.provenance import Quantity
from moesim.results.chart_theme import pictures, themed
from moesim.results.table import metric_label
from moesim.results.table import shown as value_text
from moesim.units import show
from shared import answers

LARGER_IS_BETTER = (
    "tokens_per_second",
    "tokens_per_second_per_gpu",
    "model_flops_per_second_per_gpu",
    "model_flops_utilization",
    "balancedness",
    "goodput_fraction",
)
STYLE = """<style>
.stMainBlockContainer { padding: 4rem clamp(1rem, 3vw, 3rem) 3rem; }
.stMainBlockContainer h1 { font-size: 1.9rem; padding: 0 0 .3rem; }
[data-testid="stMetricValue"] { font-size: 1.45rem; }
[data-testid="stMetricValue"] * { white-space: normal; overflow: visible; line-height: 1.2; }
[data-testid="stMetricLabel"] p { white-space: normal; line-height: 1.2; }
[data-testid="stMetricDelta"] { font-size: .8rem; }
[data-testid="stSidebarUserContent"] { padding-bottom: 2rem; }
[class*="st-key-tiles"] > div { flex: 1 1 160px !important; width: auto !important; min-width: 0; }
[class*="st-key-tiles"] > div > div { padding: .7rem .8rem; }
</style>"""
"""Less empty space, and numbers that fit their tiles."""
STYLE_DARK = """<style>
[data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primary"] p,
[data-testid="stMultiSelect"] [data-tag], [data-testid="stMultiSelect"] [data-tag] * { color: #0E1117; }
</style>"""
"""Dark letters on the light blue of a dark page, where white ones reach a contrast of 2.3 to 1 only."""

MOST_ROWS = 50_000
_PICTURES = 128
_TILE = 172
_EVERY = 0.2


def style() -> str:
    """What every page begins with."""
    return STYLE + STYLE_DARK if dark() else STYLE


def dark() -> bool:
    """Whether the reader's theme is the dark one."""
    return bool(st.context.theme.type == "dark")


def tiles(
    quantities: dict[str, Quantity],
    names: Iterable[str],
    baseline: dict[str, Quantity] | None = None,
    key: str = "page",
) -> None:
    """The headline numbers that there are among `names`, as many in a row as there is room for.

    `key`: unique on the page where it shows several such rows.
    """
    with st.container(horizontal=True, gap="small", key=f"tiles-{key}"):
        for name in names:
            if name in quantities:
                tile(name, quantities[name], (baseline or {}).get(name))


def tile(name: str, quantity: Quantity, baseline: Quantity | None = None) -> None:
    """One headline number: value, change against the baseline, range and basis."""
    change, colour = change_text(name, quantity, baseline)
    with st.container(border=True, width=_TILE, height="stretch", gap=None):
        st.metric(
            metric_label(name),
            value_text(quantity.value, quantity.unit),
            change,
            delta_color=colour,  # type: ignore[arg-type]
            delta_arrow="off" if colour == "off" else "auto",
            help=quantity.note or None,
        )
        st.caption(range_text(quantity))


def range_text(quantity: Quantity) -> str:
    """Range and basis of a quantity in words."""
    low, high = (value_text(end, quantity.unit) for end in (quantity.low, quantity.high))
    return f"{low} to {high} · {quantity.basis}" if low != high else f"{quantity.basis}"


def change_text(name: str, quantity: Quantity, baseline: Quantity | None) -> tuple[str | None, str]:
    """The change against a baseline, and the colour of st.metric for it."""
    if baseline is None:
        return None, "off"
    change = quantity.value - baseline.value
    if abs(change) <= 1e-9 * abs(baseline.value):
        return "no change", "off"
    colour = "normal" if name in LARGER_IS_BETTER else "inverse"
    if quantity.unit == "fraction":
        return f"{100 * change:+.3g} points", colour
    if baseline.value:
        return f"{100 * change / abs(baseline.value):+.3g} %", colour
    return f"{'-' if change < 0 else '+'}{value_text(abs(change), quantity.unit)}", colour


def chart_with_table(
    chart: Any, frame: pd.DataFrame, key: str, name: str, *, select: bool = False, columns: Sequence[float] = ()
) -> Any:
    """An altair chart (or its specification as a dict) in the reader's theme, its table and downloads below it.

    `key`: unique on the page; `name`: file name of the downloads; `columns`: widths of pictures that stand side by
    side, else they stand one above the other. With `select`, returns what the reader selected in the first picture.
    """
    spec = chart if isinstance(chart, dict) else chart.to_dict()
    options: dict[str, Any] = {"on_select": "rerun"} if select else {}
    drawn = [themed(picture, dark()) for picture in pictures(spec)]
    if len(drawn) > 1 and "title" in spec:
        _heading(spec["title"])
    places = st.columns(columns) if columns and len(drawn) > 1 else [st.container() for _ in drawn]
    picked = []
    for number, (place, picture) in enumerate(zip(places, drawn, strict=False)):
        with place.container(gap="small"):
            _heading(picture.pop("title", None))
            at = f"chart-{key}-{number}"
            picked.append(st.vega_lite_chart(None, picture, theme=None, width="stretch", key=at, **options))
    table(frame, key, name)
    return picked[0]


def _heading(title: Any) -> None:
    """A picture's title as text of the page: it wraps where a picture would cut it off."""
    if not title:
        return
    text, below = (title.get("text"), title.get("subtitle")) if isinstance(title, dict) else (title, "")
    lines = [f"**{plain(_words(text))}**", *([f":small[:gray[{plain(_words(below))}]]"] if below else [])]
    st.markdown("  \n".join(lines))


def _words(text: Any) -> str:
    return "; ".join(map(str, text)) if isinstance(text, list) else str(text or "")


def kept_chart(key: Hashable, build: Callable[[], Any]) -> dict[str, Any]:
    """The specification of the chart that `build()` draws, kept under a content key: altair takes a while."""
    return answers.kept("pictures", _PICTURES).get(key, lambda: build().to_dict(validate=False))


class Bar:
    """Moves a progress bar, not more often than the eye can follow; the press of any button stops the run in it."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._last = bar, 0.0

    def __call__(self, what: str, share: float) -> None:
        """Moves the bar to the share of this run that is over."""
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            self._bar.progress(min(max(share, 0.0), 1.0), plain(what))


def table(frame: pd.DataFrame, key: str, name: str) -> None:
    """A frame behind an expander, with CSV and Parquet downloads; a long one is shown in part and downloaded whole."""
    with st.expander(f"Table: {name}"):
        if len(frame) > MOST_ROWS:
            st.caption(f"the first {MOST_ROWS:,} of {len(frame):,} rows; the downloads hold all")
        st.dataframe(frame.head(MOST_ROWS), hide_index=True, key=f"table-{key}")
        with st.container(horizontal=True):
            downloads(frame, key, name)


def downloads(frame: pd.DataFrame, key: str, name: str) -> None:
    """Download buttons for a frame; the files are written when a button is pressed."""
    download("CSV", lambda: frame.to_csv(index=False).encode(), f"{name}.csv", key=f"csv-{key}")
    download("Parquet", lambda: parquet(frame), f"{name}.parquet", key=f"parquet-{key}")


_KINDS = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "yaml": "application/yaml",
    "html": "text/html",
    "json": "application/json",
}


def download(label: str, write: Callable[[], bytes], file: str, key: str) -> None:
    """One download; `write` is called when the button is pressed."""
    kind = _KINDS.get(file.rpartition(".")[2], "application/octet-stream")
    st.download_button(label, write, file, kind, key=key, on_click="ignore", icon=":material/download:")


def parquet(frame: pd.DataFrame) -> bytes:
    """A frame as the bytes of a Parquet file."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def problems(found: Iterable[Problem], title: str = "") -> None:
    """A box with every problem, under a title."""
    lines = ["- " + plain(str(problem)).replace("\n", "  \n  ") for problem in found]
    if lines:
        st.warning("\n".join([*([f"**{title}**\n"] if title else []), *lines]), icon=":material/error:")


def beside(problem: Problem, places: Iterable[str]) -> bool:
    """Whether a problem is at, or inside, one of the places (dotted keys)."""
    return any(inside(problem.where, place) for place in places)


def inside(path: str, place: str) -> bool:
    """Whether a dotted path is a place or a key within it."""
    return path == place or path.startswith(f"{place}.")


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>$~:" else letter for letter in text)


def quantity_frame(quantities: dict[str, Quantity]) -> pd.DataFrame:
    """Metrics as a table: name, value for reading, SI value and range, unit, basis, note."""
    rows = [{"metric": name, "reads": show(one.value, one.unit), **one.as_dict()} for name, one in quantities.items()]
    return pd.DataFrame(rows)
