"""One HTML page that opens without a network: its frame, tables and pictures, shared by every report.

The page forbids itself every outside request and every script but its own two (Content-Security-Policy with their
hashes), and every text of the user is escaped: a model's name cannot run.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
import yaml

from moesim.errors import FileError
from moesim.files import write_whole
from moesim.provenance import Quantity
from moesim.results.table import Row, part_rows
from moesim.units import show

_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --quiet: #5f6368; --line: #d9dce0; --page: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --quiet: #a6abb3; --line: #3a3d42; --page: #17181a; --card: #222427; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.road, .quiet { color: var(--quiet); font-size: .85rem; } .road { margin: 0 0 .3rem; }
.question { font-size: 1.05rem; margin: .3rem 0 1.2rem; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); margin: 0; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.tiles dt { color: var(--quiet); font-size: .8rem; } .tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
.tiles dd small { display: block; font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .28rem .6rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th, td { overflow-wrap: normal; } td small { display: block; color: var(--quiet); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.group th { padding-top: 1rem; color: var(--quiet); text-transform: uppercase; font-size: .75rem;
  letter-spacing: .06em; }
.picture { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; overflow-x: auto; }
.chart { min-width: 29rem; } .chart.vega-embed { width: 100%; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--quiet); font-size: .9rem; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding-right: .4rem; } }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""
_BOOT = """
"use strict";
for (const place of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
  const actions = {export: true, source: false, compiled: false, editor: false};
  const options = {ast: true, renderer: "canvas", actions, downloadFileName: place.dataset.chart};
  vegaEmbed(place, spec, options).catch(problem => {
    place.textContent = "This picture could not be drawn: " + problem.message;
  });
}
"""


def html_page(title: str, body: Iterable[str]) -> str:
    """The page as text, about 1 to 3 MB."""
    bundle = _bundle()
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(bundle, _BOOT)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} · moesim</title>\n<style>{_CSS}</style>\n</head>\n<body>",
            *body,
            f"<script>{bundle}</script>\n<script>{_BOOT}</script>\n</body>\n</html>\n",
        )
    )


@cache
def _bundle() -> str:
    """The drawing library as one script; making it takes over a second, so it is kept in the user's cache folder."""
    kept = _cache_file()
    if kept is not None:
        with suppress(OSError, UnicodeDecodeError):
            return kept.read_text(encoding="utf-8")
    made = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    if kept is not None:
        with suppress(OSError, FileError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, made, durable=True)
    return made


def _cache_file() -> Path | None:
    """Where this version's script is kept; never in a folder that other users can write to. None without a home."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return caches / "moesim" / f"vega-embed-{version('vl-convert-python')}.js" if caches.is_absolute() else None


def _policy(*scripts: str) -> str:
    hashes = (b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def html_tiles(rows: Sequence[Row], headline: Sequence[str]) -> str:
    """The metrics of `headline` as large numbers."""
    chosen = sorted((row for row in rows if row.name in headline), key=lambda row: headline.index(row.name))
    lines = (
        f"<div><dt>{escape(row.label)}</dt><dd>{escape(row.value)}"
        f'<small class="quiet">{escape(", ".join(filter(None, (row.range, row.basis))))}</small></dd></div>'
        for row in chosen
    )
    return f'<dl class="tiles">{"".join(lines)}</dl>'


def html_summary(rows: Sequence[Row]) -> str:
    """Every metric by group: value, range, basis, and the note below its name."""
    lines, group = [], ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f'<tr class="group"><th colspan="4" scope="colgroup">{escape(group)}</th></tr>')
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        lines.append(
            f'<tr><td title="{escape(row.meaning)}">{escape(row.label)}{note}</td><td class="number">'
            f'{escape(row.value)}</td><td class="number">{escape(row.range)}</td><td>{escape(row.basis)}</td></tr>'
        )
    head = '<th>metric</th><th class="number">value</th><th class="number">range</th><th>basis</th>'
    return _framed(head, lines)


def _framed(head: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def html_picture(name: str, title: str, chart: Any, table: str, bars: int = 0) -> str:
    """A section: the picture, and behind it the table of what it shows; one of `bars` bars follows the page's width."""
    spec = chart.to_dict(validate=False)
    if bars:
        step = spec["height"]
        height = step["step"] * bars if isinstance(step, dict) else step
        spec |= {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    behind = f"<details>\n<summary>As a table</summary>\n{table}\n</details>" if table else ""
    return (
        f'<h2>{escape(title)}</h2>\n<div class="picture"><div class="chart" data-chart="{name}-data"></div></div>\n'
        f'{behind}\n<script type="application/json" id="{name}-data">{json_in_html(spec)}</script>'
    )


def json_in_html(value: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""
    kinds = ["" if index < texts else ' class="number"' for index in range(len(heads))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return _framed(head, lines)


def html_parts(parts: dict[str, Quantity], heading: str) -> str:
    """Parts and their sum, the largest first."""
    total, unit = sum(part.value for part in parts.values()), next((part.unit for part in parts.values()), "")
    rows = [*part_rows(parts), ("sum", show(total, unit), "", "", "")]
    return html_table(("part", heading, "range", "share", "basis"), rows)


def html_notes(texts: Iterable[str]) -> str:
    """The notes as a list; nothing where there are none."""
    items = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<h2>Notes</h2>\n<ul>\n{items}\n</ul>" if items else ""


def html_scenario(document: dict[str, Any]) -> str:
    """Every setting, folded away."""
    plain = json.loads(json.dumps(document))
    text = escape(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))
    return (
        "<h2>Scenario</h2>\n<details>\n<summary>Every setting, with the defaults filled in</summary>\n"
        f"<pre>{text}</pre>\n</details>"
    )
