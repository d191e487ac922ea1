"""The HTML page: complete, safe with any text, drawn by a real browser without a request."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from pytest_benchmark.fixture import BenchmarkFixture
from results_fixture import LARGE, dense, estimated, simulated

from moesim.results.page import json_in_html
from moesim.results.report import write_html
from moesim.results.result import Result
from moesim.results.table import summary_rows

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


class Page(HTMLParser):
    """The elements, attributes and texts of a page, read as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[-1] = (self._script, self.scripts[-1][1] + data)


def evil() -> Result:
    result = simulated(name=EVIL, question=EVIL)
    summary = {name: replace(quantity, note=EVIL) for name, quantity in result.summary.items()}
    columns = {**result.operation_columns}
    columns["kind"] = columns["kind"].astype(object)
    columns["kind"][:] = EVIL
    parts = {EVIL: 1.0, **result.breakdown}
    return replace(result, summary=summary, breakdown=parts, memory=parts, notes=(EVIL,), operation_columns=columns)


def test_the_page_holds_everything() -> None:
    result = simulated()
    page = Page(write_html(result))
    for row in summary_rows(result):
        for text in (row.label, row.value, row.range, row.basis, row.note):
            assert text in page.text
    for text in (result.name, result.question, *result.notes, *result.breakdown, *result.memory):
        assert text in page.text
    assert yaml.safe_dump(result.scenario, sort_keys=False, allow_unicode=True, width=100) in page.text


def test_only_the_two_own_scripts_may_run_and_nothing_is_fetched() -> None:
    page = Page(write_html(evil()))
    running = [body for attributes, body in page.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 2
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert not any({"src", "href", "srcset", "action", "onerror", "onload"} & set(a) for _, a in page.elements)
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "link", "iframe", "object", "base"})


def test_pictures_are_json_whatever_the_names() -> None:
    page = Page(write_html(evil()))
    specs = {a["id"]: json.loads(body) for a, body in page.scripts if a.get("type") == "application/json"}
    places = {a["data-chart"] for _, a in page.elements if "data-chart" in a}
    assert (
        set(specs)
        == places
        == {f"{name}-data" for name in ("breakdown", "memory", "expert-load", "traffic", "timeline")}
    )
    assert json.loads(json_in_html({"a": "<!--</script>&"})) == {"a": "<!--</script>&"}
    assert not set("<>&") & set(json_in_html({"a": "<!--</script>&"}))


def test_one_result_gives_one_page() -> None:
    assert write_html(simulated()) == write_html(simulated())


@pytest.mark.parametrize("result", [estimated(), dense()], ids=["estimated", "dense"])
def test_results_without_tables_have_a_page(result: Result) -> None:
    page = Page(write_html(result))
    assert "estimated" in page.text
    assert sum(tag == "table" for tag, _ in page.elements) < sum(
        tag == "table" for tag, _ in Page(write_html(simulated())).elements
    )


@pytest.mark.parametrize("make", [simulated, evil, dense])
def test_a_browser_draws_every_picture(make: object, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "report.html").write_text(write_html(make()), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom"]
    drawn = subprocess.run(
        [*command, f"file://{tmp_path / 'report.html'}"], capture_output=True, timeout=120, check=True
    )
    page = Page(drawn.stdout.decode())
    assert sum(tag == "canvas" for tag, _ in page.elements) == 5
    assert "could not be drawn" not in page.text
    assert not any(tag == "img" and a.get("src") == "x" for tag, a in page.elements)


def test_report_of_two_hundred_thousand_operations(benchmark: BenchmarkFixture) -> None:
    result = simulated(LARGE)
    assert len(benchmark(write_html, result)) < 4_000_000
