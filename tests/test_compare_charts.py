"""The waterfall and its page: bars that add up, steady bytes, safe with any text, files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from results_fixture import Shape, dense, estimated, simulated
from test_cli import OLMOE, SMALL_TEXT, refused, run
from test_results_report import EVIL, Page
from test_results_store import largest_file

from moesim.errors import FileError, UserError
from moesim.results.compare import Comparison, compare
from moesim.results.compare_report import FILES, page, save_comparison


def slower(factor: float = 3.0) -> Comparison:
    return compare([simulated(), simulated(Shape(slow_network=factor), name="slow")])


def evil() -> Comparison:
    base, other = simulated(name=EVIL), simulated(name=EVIL, question=EVIL)
    parts = {**other.breakdown, EVIL: 1.0}
    return compare([base, replace(other, breakdown=parts, scenario={**other.scenario, EVIL: EVIL})])


def spec(comparison: Comparison, which: int = 1) -> dict[str, Any]:
    return comparison.charts.waterfall(which).to_dict()


def rows(comparison: Comparison, which: int = 1) -> list[dict[str, Any]]:
    """The bars' data, in their order."""
    return next(values for values in spec(comparison, which)["datasets"].values() if "label" in values[0])


def subtitle(comparison: Comparison) -> str:
    return " ".join(spec(comparison)["title"]["subtitle"])


def test_bars_of_the_picture_add_up_to_both_steps() -> None:
    comparison = slower()
    first, *moves, last = rows(comparison)
    assert first["end"] + sum(row["end"] - row["begin"] for row in moves) == pytest.approx(last["end"], rel=1e-9)
    for before, row in zip([first, *moves], moves, strict=False):
        assert row["begin"] == before["end"]
        assert before["next"] == row["bar"]
    steps = comparison.explanations[0].steps
    assert last["end"] / first["end"] == pytest.approx(steps[1] / steps[0], rel=1e-9)


def test_colour_sign_and_tooltip_say_what_is_slower() -> None:
    for row in rows(slower())[1:-1]:
        assert row["change"] == ("longer" if row["end"] > row["begin"] else "shorter")
        assert row["time"].startswith("+" if row["change"] == "longer" else "−")
        assert row["time"] in row["label"]
        assert row["share"].endswith("%")
    bars = next(layer for layer in spec(slower())["layer"] if layer["mark"]["type"] == "bar")
    assert bars["encoding"]["color"]["scale"]["range"][1:] == ["#E69F00", "#0072B2"]
    assert {"bar", "time", "share"} <= {entry["field"] for entry in bars["encoding"]["tooltip"]}


def test_a_cut_axis_says_so_and_tears_the_steps() -> None:
    near, far = slower(1.02), slower(9.0)
    assert "the axis begins at" in subtitle(near)
    assert "//" in json.dumps(spec(near))
    begin = rows(near)[0]["begin"]
    assert 0 < begin < min(row["end"] for row in rows(near))
    assert all(row["begin"] >= begin for row in rows(near))
    assert "the axis begins at" not in subtitle(far)
    assert "//" not in json.dumps(spec(far)["datasets"])
    assert rows(far)[0]["begin"] == 0


def test_equal_steps_are_two_bars_and_a_sentence() -> None:
    alike = compare([simulated(), simulated()])
    assert len(rows(alike)) == 2
    assert subtitle(alike) == "the same time in every part"


def test_every_result_has_its_waterfall() -> None:
    comparison = compare([simulated(), simulated(Shape(slow_network=2.0)), dense(), estimated(name="other")])
    for which in (1, 2, 3):
        assert vl_convert.vegalite_to_svg(spec(comparison, which)).startswith("<svg")
    for which in (0, 4, -1):
        with pytest.raises(UserError, match="which must be 1 to 3"):
            comparison.charts.waterfall(which)


def test_a_result_without_parts_is_drawn() -> None:
    empty = replace(estimated(), breakdown={})
    assert vl_convert.vegalite_to_svg(spec(compare([empty, empty]))).startswith("<svg")


def test_one_comparison_gives_one_picture_and_one_page() -> None:
    assert json.dumps(spec(slower())) == json.dumps(spec(slower()))
    assert page(slower()) == page(slower())


def test_the_page_holds_everything() -> None:
    comparison = slower()
    told = Page(page(comparison)).text
    why = comparison.explanations[0]
    for text in (
        *comparison.names,
        why.sentence,
        "Inputs that differ",
        "the scenarios are alike",
        "communication time",
    ):
        assert text in told
    for name in (*(part for part, _ in why.parts), *(row.operation for row in why.operations)):
        assert name in told


def test_names_cannot_run() -> None:
    read = Page(page(evil()))
    running = [body for attributes, body in read.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 2
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in running]
    assert policy is not None
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert {tag for tag, _ in read.elements}.isdisjoint({"img", "link", "iframe", "object", "base"})
    assert not any({"src", "href", "onerror", "onload"} & set(a) for _, a in read.elements)
    assert EVIL in read.text


def test_a_browser_draws_every_waterfall(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "page.html").write_text(page(evil()), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom"]
    drawn = subprocess.run([*command, f"file://{tmp_path / 'page.html'}"], capture_output=True, timeout=120, check=True)
    read = Page(drawn.stdout.decode())
    assert sum(tag == "canvas" for tag, _ in read.elements) == 1
    assert "could not be drawn" not in read.text
    assert not any(tag == "img" and a.get("src") == "x" for tag, a in read.elements)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_the_same_for_the_same_comparison(tmp_path: Path) -> None:
    written = save_comparison(slower(), tmp_path / "new" / "a")
    assert [path.name for path in written] == list(FILES)
    save_comparison(slower(), tmp_path / "b")
    assert contents(tmp_path / "new" / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "b")) == set(FILES)
    assert json.loads(contents(tmp_path / "b")["comparison.json"]) == json.loads(json.dumps(slower().as_dict()))


def test_other_files_stay_and_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    save_comparison(slower(), tmp_path)
    assert set(contents(tmp_path)) == {"mine.txt", *FILES}
    with pytest.raises(FileError, match="it is a file, not a folder"):
        save_comparison(slower(), tmp_path / "mine.txt")
    (tmp_path / "other" / "comparison.json").mkdir(parents=True)
    with pytest.raises(FileError, match=r"comparison\.json there is a folder"):
        save_comparison(slower(), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["comparison.json"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    page(slower())  # the drawing library is in the cache by now
    with largest_file(20_000), pytest.raises(FileError, match="File too large"):
        save_comparison(slower(), tmp_path / "out")
    assert contents(tmp_path) == {}


def test_the_verb_writes_both_files_and_prints_the_waterfall(tmp_path: Path) -> None:
    other = tmp_path / "mixtral.yaml"
    other.write_text(SMALL_TEXT)
    told = run("compare", OLMOE, other, "--out", tmp_path / "out", COLUMNS="80")
    assert told.returncode == 0, told.stderr
    assert set(contents(tmp_path / "out")) == set(FILES)
    assert "wrote comparison.html, comparison.json" in told.stderr
    for words in ("Inputs that differ", "model.name", "step of mixtral", "█", "The step of mixtral is"):
        assert words in told.stdout
    assert all(len(line) <= 80 for line in told.stdout.splitlines())
    written = json.loads(contents(tmp_path / "out")["comparison.json"])
    assert json.loads(run("compare", OLMOE, other, "--json").stdout) == written


def test_the_verb_asks_for_its_folder_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    absent = tmp_path / "absent.yaml"
    refused(run("compare", OLMOE, absent, "--out", tmp_path / "file"), 2, "it is a file, not a folder")
    refused(run("compare", "--dispatchers", OLMOE, "--out", tmp_path / "out"), 2, "writes no files")
    refused(run("compare", OLMOE, absent, "--out", tmp_path / "out"), 2, "absent.yaml")
    assert not (tmp_path / "out").exists()
