"""A comparison as two files: `comparison.json`, and `comparison.html`, a page that opens without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

from moesim.results.compare import Comparison, Explanation
from moesim.results.compare_inputs import value_texts
from moesim.results.compare_table import change_texts, metric_texts
from moesim.results.page import html_page, html_picture, html_table
from moesim.results.store import save_files
from moesim.units import show

FILES = ("comparison.html", "comparison.json")


def save_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the comparison into `folder`, which is made where absent, and returns the files: both or none.

    One comparison always gives the same bytes. Raises `FileError` where the folder cannot be written.
    """
    document = json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return save_files(folder, dict(zip(FILES, (page(comparison), document), strict=True)))


def page(comparison: Comparison) -> str:
    """The page as text, about 1 MB."""
    return html_page(_title(comparison), _body(comparison))


def _title(comparison: Comparison) -> str:
    first, *others = comparison.names
    return f"{', '.join(others)} against {first}"


def _body(comparison: Comparison) -> Iterable[str]:
    yield f'<header>\n<p class="road">moesim · comparison</p>\n<h1>{escape(_title(comparison))}</h1>\n</header>\n<main>'
    for which in range(1, len(comparison.explanations) + 1):
        yield from _explained(comparison, which)
    yield f"<h2>Inputs that differ</h2>\n{_inputs(comparison)}"
    pairs = [text for name in comparison.names[1:] for text in (name, "ratio")]
    heads = ("metric", comparison.names[0], *pairs, "basis")
    yield f"<h2>Metrics</h2>\n{html_table(heads, map(metric_texts, comparison.metrics))}\n</main>"


def _explained(comparison: Comparison, which: int) -> Iterable[str]:
    """Why one step, or iteration, differs: the sentence, the waterfall, and behind it parts and operations."""
    why = comparison.explanations[which - 1]
    name, whole = comparison.names[why.which], why.whole.name.capitalize()
    title = f"{whole} of {name}" if len(comparison.names) > 2 else whole
    picture = html_picture(f"waterfall-{which}", title, comparison.charts.waterfall(which), "", len(why.bars))
    yield picture.replace("</h2>", f"</h2>\n<p>{escape(why.sentence)}</p>", 1)
    yield f"<details>\n<summary>As a table</summary>\n{_parts(comparison.names, why)}\n</details>"
    if why.operations:
        rows = ((row.part, row.operation, *change_texts(row.base, row.other)) for row in why.operations)
        heads = ("part", "operation", comparison.names[0], name, "change")
        yield f"<details>\n<summary>By operation</summary>\n{html_table(heads, rows, texts=2)}\n</details>"


def _parts(names: tuple[str, ...], why: Explanation) -> str:
    """Every part of both, folded or not, and their sums."""
    here, there = why.breakdowns
    rows = [*((part, here.get(part, 0.0), there.get(part, 0.0)) for part, _ in why.parts), ("sum", *why.steps)]
    lines = ((part, *change_texts(base, other), _share(other - base, why.steps[0])) for part, base, other in rows)
    return html_table(("part", names[0], names[why.which], "change", "share"), lines)


def _share(change: float, step: float) -> str:
    """A change as a share of the first step."""
    return f"{'−' if change < 0 else '+'}{show(abs(change) / step, 'fraction')}" if step > 0 else "–"


def _inputs(comparison: Comparison) -> str:
    if not comparison.differences:
        return "<p>None: the scenarios are alike.</p>"
    rows = ((one.path, *value_texts(one)) for one in comparison.differences)
    return html_table(("input", *comparison.names), rows, texts=1 + len(comparison.names))
