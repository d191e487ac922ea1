"""Whatever is typed, linked or uploaded: a message or an answer, never a traceback, and none of it is run as HTML."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from app_fixture import messages, open_page

PAGES = {
    "what-if": ("scenario", "set", "pin", "view"),
    "plan": ("scenario", "set", "model", "gpu", "count", "tokens", "price", "days", "objective", "candidates"),
    "compare": ("a", "b", "c"),
    "sweep": ("scenario", "set", "x", "xs", "y", "ys", "seeds", "road", "metric", "view"),
    "traces": ("trace", "view", "layer", "format", "options", "scenario"),
    "validation": ("file", "unit", "colour"),
    "catalog": ("kind", "search", "name"),
}
TYPED = {
    "empty": "",
    "negative": "-1",
    "huge": "9" * 400,
    "not a number": "nan",
    "unicode": "模型\u202e🦊\x00\ud7ff",
    "HTML": "<img src=x onerror=alert(1)>",
    "Markdown": "[x](javascript:alert(1)) **b** :material/search: $x$",
    "nested": "a=" + "[" * 200,
    "a path": "../../../etc/passwd",
    "YAML": "workload={<<: *a, !!python/object/apply:os.system [ls]}",
}
NUMBERS = (
    "cluster.gpus=-8",
    "cluster.gpus=0",
    "cluster.gpus=1e30",
    "workload.global_batch=999999999999999999999",
    "workload.micro_batch=nan",
    "routing.capacity={factor: -1}",
    "routing.capacity={factor: [1,2]}",
    "routing.capacity={factor: null}",
    "routing.capacity.factor=abc",
    'routing.load={"zipf": 1e9}',
    "parallelism.expert=null",
    "cluster.nic_bandwidth=-3 GB/s",
    "name=<b>x</b>",
    "workload.kind=serving",
    "workload=5",
    "cluster=[]",
)


@pytest.mark.parametrize("text", TYPED.values(), ids=TYPED)
@pytest.mark.parametrize("page", PAGES)
def test_any_text_in_any_place_of_a_link(page: str, text: str) -> None:
    app = open_page(page, **{key: [text, text] for key in PAGES[page]})
    assert not app.exception
    assert "internal error" not in messages(app)


@pytest.mark.parametrize("change", NUMBERS)
def test_impossible_numbers_in_a_link_are_explained(change: str) -> None:
    app = open_page("what-if", scenario="olmoe-8-h100", set=[change])
    assert not app.exception
    assert "internal error" not in messages(app)
    assert "does not run" in messages(app) or app.metric


@pytest.mark.parametrize("change", NUMBERS)
def test_impossible_numbers_are_explained(change: str) -> None:
    app = open_page("what-if", scenario="olmoe-8-h100")
    app.text_area(key="what-if-settings").set_value(change).run()
    assert not app.exception
    assert "internal error" not in messages(app)
    assert "does not run" in messages(app) or app.metric


@pytest.mark.parametrize("text", TYPED.values(), ids=TYPED)
def test_any_text_in_any_field_of_plan_and_sweep(text: str) -> None:
    for page in ("plan", "sweep"):
        app = open_page(page)
        for kind in ("text_input", "text_area"):
            for place in range(len(getattr(app, kind))):
                getattr(app, kind)[place].set_value(text).run()
                assert not app.exception
                assert "internal error" not in messages(app)


def markdown(app: Any) -> str:
    """All text of the page that is read as Markdown."""
    kinds = ("markdown", "caption", "title", "subheader", "warning", "error", "info")
    return "\n".join(str(box.value) for kind in kinds for box in app.get(kind))


def test_html_in_names_stays_text() -> None:
    html = "<img src=x onerror=alert(1)>"
    own = f'name: x\nmodel: "{html}"\ncluster: {{gpu: "{html}"}}\nquestion: "{html}"\n'.encode()
    app = open_page("compare", a=["olmoe-8-h100"])
    app.file_uploader(key="compare-upload").set_value([(f"{html}.yaml", own, "application/yaml")]).run()
    app.selectbox(key="compare-b").set_value(f"own file: {html}.yaml").run()
    assert not app.exception
    shown = markdown(app)
    assert "img src" in shown
    assert "<img" not in shown.replace("\\<", ""), "an angle bracket without its backslash"


def bomb(members: int, each: int) -> bytes:
    """An archive of arrays of zeros that is small on the wire."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (each,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member in range(members):
            with archive.open(f"experts{member or ''}.npy", "w", force_zip64=True) as out:
                out.write(header.getvalue())
                for _ in range(each >> 20):
                    out.write(bytes(1 << 20))
    return file.getvalue()


def test_an_archive_that_unpacks_to_gigabytes_is_refused_unopened() -> None:
    content = bomb(2, 1 << 30)
    assert len(content) < 5 << 20
    app = open_page("traces")
    app.file_uploader(key="traces-upload").upload("bomb.npz", content, "application/zip").run()
    assert not app.exception
    assert "bytes" in messages(app)
    assert "19,584 tokens" in app.caption[0].value
