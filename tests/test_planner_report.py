"""The page of a plan: it says what the terminal says, opens without a network, and no name in it can run."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from planner_fixture import SCENARIO, SMALL

import moesim
from moesim.planner.explain import label
from moesim.planner.plan import Plan
from moesim.planner.report import page
from moesim.planner.table import shown_rows

EVIL = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"
FEW: dict[str, Any] = {**SMALL, "parallelism.pipeline": [1, 2], "schedule.kind": "auto"}
BROWSER = shutil.which("chromium")


def planned(**said: Any) -> Plan:
    more: dict[str, Any] = {"search": FEW, "simulate": 1, "workers": 1, "objective": "time", **said}
    return moesim.plan(SCENARIO, **more)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(prices={"h100-sxm": 3.0})


@pytest.fixture(scope="module")
def evil() -> Plan:
    """Names that try to run: of the model, of the GPU; and the question."""
    scenario = {**SCENARIO, "model": {"base": "olmoe-1b-7b", "name": f"m{EVIL}"}}
    scenario["cluster"] = {"gpu": {"base": "h100-sxm", "name": f"g{EVIL}"}, "gpus": 8}
    search = {**FEW, "parallelism.pipeline": 1}
    return moesim.plan(scenario, search=search, simulate=0, workers=1, question=f"q{EVIL}")


def text_of(html: str) -> str:
    """What a reader sees, without scripts and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def test_the_page_says_what_the_terminal_says(plan: Plan) -> None:
    told, model = text_of(page(plan)), plan.models[0]
    for sentence in (*model.words, *model.notes):
        assert " ".join(sentence.split()) in told
    for code, count in model.rejected.items():
        assert code in told
        assert f"{count:,}" in told
        assert model.meanings[code] in told
    assert model.winner is not None
    assert f"{model.model}: {label(model.winner)}" in told
    assert len(re.findall(r"memory headroom", told)) >= 1
    assert len(shown_rows(model)) > 1


def test_the_front_is_drawn_from_data_in_the_page(plan: Plan) -> None:
    html = page(plan)
    data = re.search(r'<script type="application/json" id="front-1-data">(.*?)</script>', html, flags=re.S)
    assert data is not None
    assert data[1].count('"front":"front"') > 0
    assert data[1].count('"place":') == plan.models[0].feasible
    assert page(plan) == html


def test_nothing_feasible_is_a_page_too() -> None:
    told = text_of(page(planned(limits={"days": 0.5}, simulate=0)))
    for words in ("nothing keeps all limits", "The closest candidate", "would relax with days"):
        assert words in told
    assert "Time against cost" not in told


def test_several_models_stand_side_by_side() -> None:
    search = {**FEW, "parallelism.pipeline": 1, "parallelism.expert": [1, 8]}
    html = page(planned(models=["olmoe-1b-7b", "qwen3-30b-a3b"], search=search, simulate=0))
    assert "Models side by side" in html
    assert html.count('data-chart="front-') == 2


def test_the_page_asks_no_one_and_escapes_every_name(evil: Plan) -> None:
    html = page(evil)
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    assert "<img" not in bare
    assert escape(f"m{EVIL}") in bare
    assert escape(f"g{EVIL}") in bare
    assert escape(f"q{EVIL}") in bare
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", bare)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_in_a_browser_the_picture_is_drawn_and_no_name_runs(evil: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    file.write_text(page(evil), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000", "--dump-dom"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    assert "<canvas" in dom
    assert "could not be drawn" not in re.sub(r"<script\b.*?</script>", "", dom, flags=re.S)
    assert re.search(r"<title>([^<]*)</title>", dom)[1] != "ran"  # type: ignore[index]
