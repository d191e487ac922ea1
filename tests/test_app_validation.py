"""The page Validation: predicted against measured, by kind, GPU and model."""

from __future__ import annotations

from typing import Any

import pytest
from app_fixture import messages, open_page

FILES = ["gemm", "nccl"]


@pytest.fixture(scope="module")
def shown() -> Any:
    """The page after two small files were predicted; kept for other sessions too."""
    app = open_page("validation", file=FILES)
    app.button(key="validation-run").click().run()
    return app


def test_nothing_is_predicted_before_it_is_asked() -> None:
    app = open_page("validation", file=["dsv3-kernels"])
    assert "1 of 1 files are not predicted yet" in app.caption[0].value
    assert not app.get("vega_lite_chart")
    assert not messages(app)


def test_scatter_errors_and_tables_stand_on_the_page(shown: Any) -> None:
    assert not messages(shown)
    assert "160 cases, 160 values" in shown.caption[0].value
    assert (
        len(shown.get("vega_lite_chart")) == 4
    )  # the scatter, errors by kind, GPU, library: these files name no model
    labels = [box.label for box in shown.expander]
    assert {"Table: cases", "Table: errors-by-kind", "Table: errors-by-gpu", "Furthest off"} <= set(labels)


def test_the_worst_come_first(shown: Any) -> None:
    errors = shown.dataframe[-1].value["error"].abs().tolist()
    assert errors == sorted(errors, reverse=True)


def test_colour_and_unit_change_with_their_controls_and_stand_in_the_link(shown: Any) -> None:
    shown.selectbox(key="validation-colour").set_value("gpu").run()
    assert shown.query_params["colour"] == "gpu"
    assert shown.selectbox(key="validation-unit").options == ["time (s)"]
    assert not messages(shown)


def test_another_session_needs_no_second_prediction(shown: Any) -> None:
    again = open_page("validation", file=FILES, colour="metric")
    assert not [button for button in again.button if button.key == "validation-run"]
    assert again.selectbox(key="validation-colour").value == "metric"


def test_choosing_files_changes_what_is_asked(shown: Any) -> None:
    app = open_page("validation")
    assert "files are not predicted yet" in app.caption[0].value
    app.multiselect(key="validation-file").set_value(["gemm"]).run()
    assert app.query_params["file"] in ("gemm", ["gemm"])
    assert "64 cases" in app.caption[0].value


def test_a_link_with_an_unknown_file_shows_all() -> None:
    app = open_page("validation", file=["no-such-file"])
    assert not messages(app)
    assert app.multiselect(key="validation-file").value == []
