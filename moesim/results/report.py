"""A result as one HTML page that opens without a network: tables, interactive pictures, notes and the scenario.

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

from moesim.provenance import Quantity
from moesim.results import views
from moesim.results.result import Result
from moesim.results.table import Row, part_rows, summary_rows
from moesim.units import show

_HEADLINE = (
    "step_time",
    "tokens_per_second_per_gpu",
    "model_flops_utilization",
    "communication_fraction",
    "memory_per_gpu",
    "cost",
)
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


def write_html(result: Result) -> str:
    """The page as text, about 1 to 3 MB; one result always gives the same text."""
    bundle = _bundle()
    title = f"{result.name} · moesim"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(bundle, _BOOT)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
            *_body(result),
            f"<script>{bundle}</script>\n<script>{_BOOT}</script>\n</body>\n</html>\n",
        )
    )


@cache
def _bundle() -> str:
    """The drawing library as one script; making it takes over a second, so it is kept in the user's cache folder."""
    kept = _cache_file()
    with suppress(OSError, UnicodeDecodeError):
        return kept.read_text(encoding="utf-8")
    made = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_text(made, encoding="utf-8")
        draft.replace(kept)
    return made


def _cache_file() -> Path:
    """Where this version's script is kept; never in a folder that other users can write to."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return caches / "moesim" / f"vega-embed-{version('vl-convert-python')}.js"


def _policy(*scripts: str) -> str:
    hashes = (b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _body(result: Result) -> Iterable[str]:
    rows = summary_rows(result)
    yield f'<header>\n<p class="road">moesim · {escape(result.road)}d</p>\n<h1>{escape(result.name)}</h1>'
    yield f'<p class="question">{escape(result.question)}</p>\n{_tiles(rows)}\n</header>'
    yield f"<main>\n<h2>Summary</h2>\n{_summary(rows)}"
    charts = result.charts
    step, memory = result.parts("step_time"), result.parts("memory_per_gpu")
    yield _picture("breakdown", "Time", charts.breakdown(), _parts(step, "time"), len(step))
    yield _picture("memory", "Memory", charts.memory(), _parts(memory, "bytes"), len(memory))
    yield _picture("expert-load", "Experts", charts.expert_load(), _load(result))
    yield _picture("traffic", "Traffic", charts.traffic(), _traffic(result))
    yield _picture("timeline", "Timeline", charts.timeline(), _kinds(result))
    if result.notes:
        items = "\n".join(f"<li>{escape(note)}</li>" for note in result.notes)
        yield f"<h2>Notes</h2>\n<ul>\n{items}\n</ul>"
    yield "<h2>Scenario</h2>\n<details>\n<summary>Every setting, with the defaults filled in</summary>"
    yield f"<pre>{_yaml(result)}</pre>\n</details>\n</main>"


def _tiles(rows: Sequence[Row]) -> str:
    chosen = sorted((row for row in rows if row.name in _HEADLINE), key=lambda row: _HEADLINE.index(row.name))
    tiles = (
        f"<div><dt>{escape(row.label)}</dt><dd>{escape(row.value)}"
        f'<small class="quiet">{escape(", ".join(filter(None, (row.range, row.basis))))}</small></dd></div>'
        for row in chosen
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _summary(rows: Sequence[Row]) -> str:
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


def _picture(name: str, title: str, chart: Any, table: str, bars: int = 0) -> str:
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


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""
    kinds = ["" if index < texts else ' class="number"' for index in range(len(heads))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return _framed(head, lines)


def _parts(parts: dict[str, Quantity], heading: str) -> str:
    total, unit = sum(part.value for part in parts.values()), next((part.unit for part in parts.values()), "")
    rows = [*part_rows(parts), ("sum", show(total, unit), "", "", "")]
    return _table(("part", heading, "range", "share", "basis"), rows)


def _load(result: Result) -> str:
    if result.routing_columns is None or not len(result.routing_columns["tokens"]):
        return ""
    load = views.expert_load(result.routing_columns)
    busiest = load.experts[load.load.argmax(axis=1)]
    rows = (
        (str(layer), str(expert), f"{of_expert:.3g}", f"{of_rank:.3g}", show(idle, "fraction"))
        for layer, expert, of_expert, of_rank, idle in zip(
            load.layers, busiest, load.expert_peak, load.rank_peak, load.idle, strict=True
        )
    )
    return _table(("layer", "busiest expert", "expert max / mean", "rank max / mean", "idle experts"), rows)


def _traffic(result: Result) -> str:
    if result.traffic is None or not result.traffic.size:
        return ""
    ranks = views.rank_totals(result.traffic)
    rows = ((str(row.first), *(show(number, "B") for number in (row.own, row.sent, row.received))) for row in ranks)
    rank = "rank" if len(ranks) == len(result.traffic) else f"from rank (mean of {len(result.traffic) // len(ranks)})"
    return _table((rank, "to itself", "to others", "from others"), rows)


def _kinds(result: Result) -> str:
    if result.operation_columns is None or not len(result.operation_columns["begin"]):
        return ""
    rows = (
        (row.kind, row.stream, f"{row.operations:,}", *shown)
        for row in views.by_kind(views.first_step(result.operation_columns))
        for shown in [(show(row.seconds, "s"), show(row.bytes_up, "B"), show(row.bytes_out, "B"))]
    )
    heads = ("operation", "stream", "count", "time a stage", "bytes scale-up", "bytes scale-out")
    return _table(heads, rows, texts=2)


def _yaml(result: Result) -> str:
    plain = json.loads(json.dumps(result.scenario))
    return escape(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))
