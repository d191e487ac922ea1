"""The page Catalog: search, entries with sources, YAML to copy."""

from __future__ import annotations

import pytest
from app_fixture import messages, open_page

from moesim import listing


@pytest.mark.parametrize("kind", [row["kind"] for row in listing.overview()])
def test_every_kind_opens_with_its_first_entry(kind: str) -> None:
    app = open_page("catalog", kind=kind)
    assert not messages(app)
    first = listing.entries(kind)[0]["name"]
    assert app.subheader[0].value.replace("\\", "") == first
    assert f"name: {first}" in app.code[-1].value or f"name: '{first}'" in app.code[-1].value


def test_search_over_all_kinds_finds_models_and_calibrations() -> None:
    app = open_page("catalog", kind="all kinds", search="deepseek v3")
    found = app.dataframe[0].value
    assert {"models", "profiles"} <= set(found["kind"])
    assert all("deepseek" in " ".join(map(str, line)).lower() for line in found.to_numpy())


def test_typing_a_search_narrows_and_stands_in_the_link() -> None:
    app = open_page("catalog", kind="gpus")
    many = len(app.dataframe[0].value)
    app.text_input(key="catalog-search").input("nvl72").run()
    assert 0 < len(app.dataframe[0].value) < many
    assert app.query_params["search"] == "nvl72"


def test_nothing_found_is_said() -> None:
    app = open_page("catalog", search="no such thing anywhere")
    assert "Nothing in the catalog" in messages(app)
    assert not app.exception


def test_choosing_kind_and_entry_changes_the_page_and_the_link() -> None:
    app = open_page("catalog")
    app.selectbox(key="catalog-kind").set_value("gpus").run()
    app.selectbox(key="catalog-name").set_value("gpus/h100-sxm").run()
    assert app.query_params["kind"] == "gpus"
    assert app.query_params["name"] == "gpus/h100-sxm"
    assert app.code[0].value == "cluster: {gpu: h100-sxm}"
    assert any("datasheet" in text.value for text in app.markdown)


def test_a_link_with_nonsense_shows_the_default() -> None:
    app = open_page("catalog", kind="no-such-kind", name="x/y")
    assert not messages(app)
    assert app.selectbox(key="catalog-kind").value == "models"
