"""The page Traces: shipped and uploaded recordings, looked at, fitted, and used as a scenario's load."""

from __future__ import annotations

import builtins
import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
from app_fixture import messages, open_page

import moesim
from moesim import shipped
from moesim.catalog import recorded

T, L, E, K = 256, 2, 8, 2
VIEWS = ("load", "imbalance", "sources", "drops", "locality", "coactivation")


def npz(tokens: int = T, seed: int = 0) -> bytes:
    """A recording as .npz: distinct experts a token, the first ones more popular, in sequences of 32."""
    weight = 1.0 / np.arange(1, E + 1)
    keys = np.random.default_rng(seed).gumbel(size=(tokens, L, E)) + np.log(weight)
    file = io.BytesIO()
    np.savez(file, experts=keys.argsort(axis=-1)[..., -K:].astype(np.uint8), lengths=np.full(tokens // 32, 32))
    return file.getvalue()


def uploaded(name: str, content: bytes, **link: str) -> Any:
    """The page after an upload."""
    app = open_page("traces", **link)
    return app.file_uploader(key="traces-upload").upload(name, content, "application/octet-stream").run()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_a_shipped_recording_has_picture_and_table(view: str) -> None:
    app = open_page("traces", view=view)
    assert not messages(app)
    assert "19,584 tokens in 306 sequences" in app.caption[0].value
    assert len(app.get("vega_lite_chart")) == 2  # the view, and how good the shipped fit is
    assert f"Table: {view}" in [box.label for box in app.expander]


def test_all_numbers_are_a_table() -> None:
    app = open_page("traces", view="all")
    table = app.dataframe[0].value
    assert {"locality", "drops", "imbalance"} <= set(table["group"])


@pytest.mark.parametrize("name", recorded.names("traces"))
def test_every_shipped_recording_opens(name: str) -> None:
    app = open_page("traces", trace=name)
    assert not messages(app)
    assert app.selectbox(key="traces-trace").value == name


def test_controls_change_the_page_and_its_link() -> None:
    app = open_page("traces")
    app.selectbox(key="traces-trace").set_value("cpu-small-switch-top-1").run()
    app.segmented_control(key="traces-view").set_value("coactivation").run()
    app.selectbox(key="traces-layer").set_value("2").run()
    app.selectbox(key="traces-scenario").set_value("mixtral-8x7b-64-h100").run()
    said = {"trace": "cpu-small-switch-top-1", "view": "coactivation", "layer": "2", "scenario": "mixtral-8x7b-64-h100"}
    assert {name: app.query_params[name] for name in said} == said
    assert not messages(app)


@pytest.mark.parametrize(("key", "law"), [("traces-use-trace", "trace"), ("traces-use-fit", "fitted")])
def test_a_recording_becomes_the_load_of_what_if(key: str, law: str) -> None:
    app = open_page("traces")
    assert app.selectbox(key="traces-scenario").value == "mixtral-8x7b-64-h100"
    app.button(key=key).click().run()
    assert app.title[0].value == "What if"
    scenario = moesim.load(shipped.scenarios()[app.query_params["scenario"]], [app.query_params["set"]])
    assert getattr(scenario.routing.load, law) == "cpu-small-gshard-top-2"
    assert not messages(app)


def test_an_upload_is_inspected_fitted_and_used() -> None:
    app = uploaded("mine.npz", npz())
    assert not messages(app)
    assert app.query_params["trace"].startswith("upload-")
    assert "256 tokens in 8 sequences" in app.caption[0].value
    app.button(key="traces-fit").click().run(timeout=300)
    assert "Table: goodness" in [box.label for box in app.expander]
    app.button(key="traces-use-fit").click().run()
    assert app.title[0].value == "What if"
    assert "-fit.safetensors" in app.query_params["set"]
    assert not messages(app)


def test_a_link_to_an_upload_opens_while_it_is_held() -> None:
    name = uploaded("mine.npz", npz(seed=1)).query_params["trace"]
    again = open_page("traces", trace=name)
    assert "256 tokens" in again.caption[0].value
    gone = open_page("traces", trace="upload-0123456789abcdef")
    assert "upload it again" in messages(gone)
    assert not gone.exception


def test_options_say_what_a_file_leaves_open() -> None:
    text = json.dumps([[0, 1], [1, 2]])
    rows = [{"request_id": "r", "layer": 0, "topk_ids": text}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    app = uploaded("log.jsonl", content)
    before = messages(app)
    assert before
    app.selectbox(key="traces-format").set_value("csv").run()
    app.text_input(key="traces-options").input("top_k").run()
    app.button(key="traces-again").click().run()
    assert "key=value" in messages(app).replace("\\", "")


def test_too_few_counts_are_said() -> None:
    content = json.dumps({"model/expert_counts/all": [[5, 9, 2, 8], [4, 4, 4, 4]]}).encode()
    app = uploaded("counts.json", content, options="top_k=2")
    assert "too few counts" in messages(app)
    assert not app.exception


def test_counts_alone_give_a_simple_law() -> None:
    counts = {"model/expert_counts/all": [[50, 90, 20, 80, 10, 10, 30, 30], [40, 40, 40, 40, 90, 90, 10, 10]]}
    app = uploaded("counts.json", json.dumps(counts).encode(), options="top_k=2")
    assert not messages(app)
    assert "log_normal" in app.code[0].value
    app.button(key="traces-use-law").click().run()
    assert app.title[0].value == "What if"
    assert "log_normal" in app.query_params["set"]
    assert not messages(app)


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import builtins; builtins.moesim_bomb = True",)


def torch_like() -> bytes:
    """An archive as torch writes it, with a pickle inside."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("trace.json", pickle.dumps(Bomb()), "pickle"),
        ("trace.npz", pickle.dumps({"a": 1}, protocol=4), "pickle"),
        ("trace.npz", torch_like(), "torch file"),
        ("empty.csv", b"", "empty"),
        ("noise.safetensors", bytes(range(256)) * 20, "cannot read"),
        ("cut.npz", npz()[:400], "cannot read"),
        ("text.csv", b"hello, world\n1, 2\n", "known formats"),
        ("deep.json", b"[" * 100_000, "cannot read"),
        ("../../etc/passwd.csv", b"x", "cannot read etc-passwd.csv"),
    ],
)
def test_a_bad_upload_is_one_clear_message(name: str, content: bytes, said: str) -> None:
    app = uploaded(name, content)
    assert not app.exception
    assert said in messages(app).replace("\\", "")
    assert not hasattr(builtins, "moesim_bomb")
    assert "moesim-dashboard-" not in messages(app)
    assert "19,584 tokens" in app.caption[0].value


def test_an_upload_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("traces")
    monkeypatch.setattr("views.traces_files.most_bytes", lambda: 100)
    app.file_uploader(key="traces-upload").upload("big.csv", b"1," * 100, "text/csv").run()
    assert "at most 100 are taken" in messages(app)
