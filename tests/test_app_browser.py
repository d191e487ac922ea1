"""The dashboard in Chromium: pages open, controls move, work runs and stops, links reopen; nobody else is asked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import browser_fixture
import numpy as np
import pytest
from browser_fixture import CHROMIUM, FLAGS, NARROW, WIDE, Visit

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'moesim[test]'"
)
pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'moesim[app]'")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium")

PAGES = {
    "what-if": "What if",
    "plan": "Plan",
    "compare": "Compare",
    "sweep": "Sweep",
    "traces": "Traces",
    "validation": "Validation",
    "catalog": "Catalog",
}
CHART = ".vega-embed svg"
PLAN = {"scenario": "olmoe-8-h100", "candidates": "1000", "simulate": "0"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard that runs."""
    with browser_fixture.server(tmp_path_factory.mktemp("dashboard") / "log.txt") as (found, _):
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(address: str, chromium: Any) -> Iterator[Visit]:
    """A tab of its own in the light theme, 1280 pixels wide; at the end nothing strange may have happened in it."""
    yield from _visit(address, chromium, WIDE, "light")


def _visit(address: str, chromium: Any, size: dict[str, int], theme: str) -> Iterator[Visit]:
    context = chromium.new_context(viewport=size, color_scheme=theme)
    found = Visit(context.new_page(), address)
    yield found
    context.close()
    assert found.strangers() == []
    assert found.complaints == []


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")])
@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_at_every_width_and_theme(
    path: str, size: dict[str, int], theme: str, address: str, chromium: Any, tmp_path: Path
) -> None:
    for found in _visit(address, chromium, size, theme):
        found.open(path)
        assert found.page.inner_text("h1") == PAGES[path]
        assert "Traceback" not in found.text()
        overflow = found.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 1, f"{path} is {overflow} pixels too wide for {size['width']}"
        dark = found.page.evaluate(
            "getComputedStyle(document.querySelector('[data-testid=\"stApp\"]')).backgroundColor"
        )
        assert (dark == "rgb(255, 255, 255)") == (theme == "light")
        found.picture(tmp_path / f"{path}-{size['width']}-{theme}.png")


def test_a_moved_slider_changes_numbers_and_link_and_the_link_reopens_it(visit: Visit, tmp_path: Path) -> None:
    visit.open("what-if", scenario="mixtral-8x7b-64-h100")
    before = visit.page.locator('[data-testid="stMetricValue"]').first.inner_text()
    slider = visit.page.get_by_role("slider", name="Capacity factor")
    slider.focus()
    slider.press("ArrowLeft")
    visit.settle()
    after = visit.page.locator('[data-testid="stMetricValue"]').first.inner_text()
    assert before != after
    link = visit.page.url
    assert parse_qs(urlsplit(link).query)["set"]
    again = Visit(visit.page.context.new_page(), visit.address)
    again.page.goto(link)
    again.page.wait_for_selector('[data-testid="stMetricValue"]')
    again.settle()
    assert again.page.locator('[data-testid="stMetricValue"]').first.inner_text() == after
    again.picture(tmp_path / "shared-link.png")
    assert again.strangers() == []


def test_back_undoes_a_change_and_forward_makes_it_again(visit: Visit) -> None:
    visit.open("what-if")
    first = visit.page.url
    slider = visit.page.get_by_role("slider", name="Expert parallel (EP)")
    before = slider.get_attribute("aria-valuetext")
    slider.focus()
    slider.press("ArrowLeft")
    visit.page.wait_for_url(lambda url: "set=" in url)
    visit.settle()
    visit.page.wait_for_timeout(1000)  # a browser that has not heard of the change yet is given a while
    moved, link = slider.get_attribute("aria-valuetext"), visit.page.url
    assert moved != before
    for step, value, address in (("back", before, first), ("forward", moved, link), ("back", before, first)):
        visit.page.evaluate(f"history.{step}()")
        visit.page.wait_for_timeout(300)
        visit.settle()
        assert slider.get_attribute("aria-valuetext") == value
        assert visit.page.url == address


def test_a_serving_scenario_and_what_its_requests_do(visit: Visit, tmp_path: Path) -> None:
    visit.open("what-if", scenario="serving/gpt-oss-120b-8-h100", set=["workload.requests=300"])
    assert "Steady state in closed form" in visit.text()
    visit.press("what-if-serve")
    visit.page.get_by_text("Latency of requests").first.wait_for()
    visit.settle()
    assert visit.page.locator(CHART).count() == 8
    visit.picture(tmp_path / "serving.png")


def test_on_a_narrow_page_the_sidebar_leads_to_controls_and_pages(address: str, chromium: Any, tmp_path: Path) -> None:
    for found in _visit(address, chromium, NARROW, "light"):
        found.open("what-if", scenario="olmoe-8-h100")
        found.page.get_by_test_id("stExpandSidebarButton").click()
        slider = found.page.get_by_role("slider", name="Expert parallel (EP)")
        slider.wait_for()
        found.picture(tmp_path / "sidebar-400.png", whole=False)
        slider.focus()
        slider.press("ArrowLeft")
        found.settle()
        assert parse_qs(urlsplit(found.page.url).query)["set"] == ["parallelism.expert=4"]
        found.page.get_by_role("link", name="Catalog").click()
        found.page.wait_for_url(lambda url: "/catalog" in url)
        found.settle()
        assert found.page.inner_text("h1") == "Catalog"


def test_a_simulation_runs_and_draws_its_timeline(visit: Visit, tmp_path: Path) -> None:
    visit.open("what-if", scenario="olmoe-8-h100", view="timeline", set=["simulation.microbatch_samples=1"])
    visit.press("what-if-simulate")
    visit.page.wait_for_selector(CHART)
    assert "Simulated" in visit.text()
    visit.picture(tmp_path / "simulated.png")


def test_a_plan_runs_and_a_click_opens_a_candidate_in_what_if(visit: Visit, tmp_path: Path) -> None:
    visit.open("plan", **PLAN)
    visit.press("plan-run")
    points = visit.page.locator('[class*="st-key-chart-plan-front"] .mark-symbol.role-mark path')
    points.first.wait_for()
    visit.settle()
    visit.picture(tmp_path / "planned.png")
    points.first.click()
    visit.page.wait_for_url(lambda url: "scenario=olmoe-8-h100" in url and "/plan" not in url)
    visit.settle()
    assert visit.page.inner_text("h1") == "What if"
    settings = parse_qs(urlsplit(visit.page.url).query)["set"]
    assert any(text.startswith(("workload.", "recompute", "parallelism.")) for text in settings)
    visit.page.go_back()
    visit.page.wait_for_url(lambda url: "/plan" in url)
    visit.settle()
    assert visit.page.inner_text("h1") == "Plan"
    assert "keep all limits" in visit.text()
    visit.page.go_forward()
    visit.page.wait_for_url(lambda url: "/plan" not in url)
    visit.settle()
    assert parse_qs(urlsplit(visit.page.url).query)["set"] == settings
    visit.page.get_by_role("link", name="Plan").click()
    visit.page.wait_for_url(lambda url: "/plan" in url)
    visit.settle()
    assert visit.page.inner_text("h1") == "Plan"
    assert "keep all limits" in visit.text()


def test_a_plan_can_be_stopped(visit: Visit) -> None:
    visit.open("plan", scenario="mixtral-8x7b-64-h100", candidates="100000", simulate="10", count="64, 128, 256")
    visit.page.locator(".st-key-plan-run button").click()
    visit.page.locator(".st-key-plan-stop button").click()
    visit.settle()
    assert "Stopped" in visit.text()
    assert visit.page.locator(".st-key-plan-run button").count() == 1


def test_a_sweep_is_run_and_drawn_as_a_heat_map(visit: Visit, tmp_path: Path) -> None:
    visit.open("sweep", x="workload.micro_batch", xs="1, 2", y="parallelism.expert", ys="4, 8")
    visit.press("sweep-run")
    visit.page.wait_for_selector(CHART)
    visit.page.get_by_role("radio", name="Heat map").or_(
        visit.page.get_by_role("button", name="Heat map")
    ).first.click()
    visit.settle()
    assert parse_qs(urlsplit(visit.page.url).query)["view"] == ["heat-map"]
    visit.picture(tmp_path / "sweep.png")


def recording() -> bytes:
    """A recording as .npz: 128 tokens in sequences of 32."""
    file = io.BytesIO()
    drawn = np.random.default_rng(0).random((128, 2, 8)).argsort(axis=-1)[..., :2].astype(np.uint8)
    np.savez(file, experts=drawn, lengths=np.full(4, 32))
    return file.getvalue()


def test_a_good_and_a_bad_upload(visit: Visit, tmp_path: Path) -> None:
    visit.open("traces")
    upload = visit.page.locator('input[type="file"]')
    upload.set_input_files({"name": "bad.csv", "mimeType": "text/csv", "buffer": b"\x80\x04K\x01."})
    visit.page.get_by_text("which could run code").first.wait_for()
    visit.picture(tmp_path / "bad-upload.png")
    upload.set_input_files({"name": "good.npz", "mimeType": "application/zip", "buffer": recording()})
    visit.page.get_by_text("128 tokens in 4 sequences").first.wait_for()
    visit.settle()
    assert "could run code" not in visit.text()
    assert parse_qs(urlsplit(visit.page.url).query)["trace"][0].startswith("upload-")
    visit.page.wait_for_selector(CHART)
    visit.picture(tmp_path / "good-upload.png")


def test_validation_predicts_and_draws(visit: Visit, tmp_path: Path) -> None:
    visit.open("validation", file=["gemm", "nccl"])
    visit.press("validation-run")
    visit.page.wait_for_selector(CHART)
    assert "160 cases" in visit.text()
    visit.picture(tmp_path / "validation.png")


def test_downloads_arrive(visit: Visit) -> None:
    visit.open("catalog", kind="gpus", name="gpus/h100-sxm")
    with visit.page.expect_download() as coming:
        visit.page.locator(".st-key-catalog-yaml button").click()
    found = coming.value
    assert found.suggested_filename == "h100-sxm.yaml"
    assert "bf16: 989 TFLOP/s" in Path(found.path()).read_text()


def test_the_keyboard_reaches_controls_and_pages(visit: Visit) -> None:
    visit.open("catalog")
    seen = set()
    for _ in range(30):
        visit.page.keyboard.press("Tab")
        seen.add(
            visit.page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
    told = " ".join(str(one) for one in seen)
    assert "Search" in told
    assert "Validation" in told
