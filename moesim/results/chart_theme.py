"""A chart's specification for a light or a dark page: one pure function over plain data."""

from __future__ import annotations

from typing import Any

from moesim.results.chart_style import INK

LIGHT = {"ink": INK, "quiet": "#555555", "grid": "#DDDDDD", "page": "#FFFFFF"}
FONTS = '"Source Sans", "Source Sans Pro", "Segoe UI", Roboto, sans-serif'
DARK = {"ink": "#E6E8EB", "quiet": "#A9B0BA", "grid": "#3A414D", "page": "#0E1117"}

# Colours of text and rules, and those of marks that a dark page would swallow.
_TEXT = {INK: DARK["ink"], "black": DARK["ink"], "#555555": DARK["quiet"], "white": DARK["page"]}
_MARKS = {
    "#0072B2": "#3D9BD9",
    "#555555": "#8A929C",
    "#332288": "#7F77D6",
    "#882255": "#C4648F",
    "#117733": "#3FA765",
    "black": DARK["ink"],
    INK: DARK["ink"],
}

_PAINTED = ("range", "value", "fill", "color")

# A page sets the width of the whole picture; its height stays that of the plot, whatever axes and legends need.
_COLUMN, _SHORT_COLUMN = 150, 105
_LETTER, _SYMBOL = 6, 30
_MOST_COLUMNS = 8
_DARK_EXTENT = [0.3, 1.0]
_ACROSS = {"type": "fit-x", "contains": "padding"}


def themed(spec: dict[str, Any], dark: bool) -> dict[str, Any]:
    """`spec` on a transparent background with text that reads on the page; data are shared, not copied."""
    colours = DARK if dark else LIGHT
    drawn: dict[str, Any] = _recoloured(spec, None) if dark else dict(spec)
    config = {**drawn.get("config", {}), **_config(colours)}
    drawn = _narrowed(drawn)
    return {**drawn, "background": "transparent", "autosize": _ACROSS, "config": config}


def _config(colours: dict[str, str]) -> dict[str, Any]:
    ink, quiet, grid = colours["ink"], colours["quiet"], colours["grid"]
    text = {"labelColor": ink, "titleColor": ink}
    return {
        "font": FONTS,
        "axis": {**text, "gridColor": grid, "domainColor": quiet, "tickColor": quiet},
        "legend": text,
        "title": {"color": ink, "subtitleColor": quiet},
        "text": {"color": ink},
        "view": {"stroke": grid},
    }


def _narrowed(node: Any) -> Any:
    """Legends of names above or below the plot, in as many columns as its width has room for, and no space kept for
    longer labels."""
    if isinstance(node, list):
        return [_narrowed(value) for value in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key != "minExtent"}
    found = {key: value if key in ("data", "datasets") else _narrowed(value) for key, value in kept.items()}
    legend = found.get("legend")
    named = found.get("type") in ("nominal", "ordinal") and isinstance(legend, dict)
    if named and legend is not None and legend.get("direction") != "vertical":
        most, least = (legend["columns"], _COLUMN) if "columns" in legend else (_MOST_COLUMNS, _SHORT_COLUMN)
        columns = {"expr": f"max(1, min({most}, floor(width / {max(least, _room(found.get('scale')))})))"}
        found["legend"] = {"orient": "top", **legend, "columns": columns}
    return found


def _room(scale: Any) -> int:
    """Pixels that a column of a legend takes: as wide as the mean of its longest name and the middle one."""
    names = scale.get("domain") if isinstance(scale, dict) else None
    letters = sorted(len(str(name)) for name in names) if isinstance(names, list) else []
    return _SYMBOL + _LETTER * (letters[-1] + letters[len(letters) // 2]) // 2 if letters else 0


def _recoloured(node: Any, channel: str | None) -> Any:
    """The node with its colours exchanged; data stay as they are."""
    if isinstance(node, dict):
        if node.get("name") == "viridis" and "extent" in node:  # its first colours drown in a dark page
            return {**node, "extent": _DARK_EXTENT}
        return {key: value if key in ("data", "datasets") else _recoloured(value, key) for key, value in node.items()}
    if isinstance(node, list):
        return [_recoloured(value, channel) for value in node]
    if not isinstance(node, str):
        return node
    return _MARKS.get(node, _TEXT.get(node, node)) if channel in _PAINTED else _TEXT.get(node, node)


def pictures(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures that `spec` puts side by side or one above the other, each as a specification of its own.

    A page lays them out itself: concatenated pictures do not follow its width.
    """
    children = next((spec[how] for how in ("hconcat", "vconcat", "concat") if how in spec), None)
    if children is None:
        return [spec]
    found = []
    for child in children:
        own = {key: value for key, value in spec.items() if key in ("$schema", "config")}
        data = {"data": spec["data"]} if "data" in spec and "data" not in child else {}
        names = {"datasets": spec["datasets"]} if "datasets" in spec else {}
        params = [_free(param) for param in spec.get("params", ()) if _belongs(param, child)]
        found.append({**own, **data, **names, **child, **({"params": params} if params else {})})
    return [picture for child in found for picture in pictures(child)]


def _belongs(param: dict[str, Any], child: dict[str, Any]) -> bool:
    names = {child.get("name"), *(layer.get("name") for layer in child.get("layer", ()))}
    return bool(names & set(param.get("views", ())))


def _free(param: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in param.items() if key != "views"}
