"""Whatever is typed, linked or uploaded: a message or an answer, never a traceback, and none of it is run as HTML."""

from __future__ import annotations

import io
import pickle
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fixture import MAIN, messages, open_page

from moesim.traces import store
from moesim.traces.trace import RouterTrace, TraceMeta

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


def torch_like() -> bytes:
    """An archive as torch writes them: a pickle, and what it refers to."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as out:
        out.writestr("x/data.pkl", pickle.dumps({"logical_count": [[1]]}))
    return held.getvalue()


EVIL = "<img src=x onerror=alert(1)>[x](javascript:alert(1))\x1b[31m"
UPLOADS: dict[str, tuple[str, bytes, str]] = {
    "a pickle called npz": ("a.npz", pickle.dumps({"experts": 1}), "is a pickle"),
    "a pickle called JSON": ("a.json", pickle.dumps([1]), "is a pickle"),
    "a torch file called npz": ("a.npz", torch_like(), "is a pickle or a torch file"),
    "objects": (
        "a.npy",
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(79) + b"\n",
        "not numbers",
    ),
    "a lying header": ("a.safetensors", (1 << 63).to_bytes(8, "little") + b"{}", "known formats"),
    "brackets": ("a.json", b"[" * 100_000, "known formats"),
    "an endless line": ("a.csv", b"token,layer,experts\n" + b"1," * 1_000_000, "cannot read"),
    "a name of colours": (f"{EVIL}\n../../a.csv", b"1;2\n", "cannot read"),
}


@pytest.mark.parametrize("file", UPLOADS)
def test_an_upload_that_harms_is_refused(file: str) -> None:
    name, content, said = UPLOADS[file]
    app = open_page("traces")
    app.file_uploader(key="traces-upload").upload(name, content, "application/octet-stream").run()
    assert not app.exception
    shown = messages(app).replace("\\", "")
    assert said in shown
    assert "internal error" not in shown
    assert "/tmp" not in shown, "where uploads are kept is nobody's business"
    assert "\x1b" not in shown
    assert "<img" not in messages(app).replace("\\<", "")


def test_what_a_recording_says_of_itself_stays_text(tmp_path: Path) -> None:
    meta = TraceMeta(experts=4, top_k=1, model_layers=(0,), domains=(EVIL,), model=EVIL, source=EVIL, note=EVIL)
    one = np.zeros(64, np.int32)
    kept = RouterTrace(np.zeros((64, 1, 1), np.uint8), one, np.arange(64, dtype=np.int32), one[:1], one[:1], meta)
    store.save(kept, tmp_path / "a.safetensors")
    app = open_page("traces")
    content = (tmp_path / "a.safetensors").read_bytes()
    app.file_uploader(key="traces-upload").upload("a.safetensors", content, "application/octet-stream").run()
    assert not app.exception
    shown = markdown(app)
    assert "img src" in shown.replace("\\", "")
    assert "<img" not in shown.replace("\\<", "")
    assert "](java" not in shown.replace("\\]", "").replace("\\(", "")


@pytest.mark.parametrize(
    "content",
    [
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "model: !!python/object/apply:os.system [touch ran]\n",
        "seed: 1" + ":59" * 300_000,
        "a: " + "[" * 10_000,
        "x" * (3 << 20),
    ],
    ids=["laughs", "a call", "base 60", "brackets", "large"],
)
def test_a_scenario_that_harms_is_refused(content: str) -> None:
    app = open_page("compare", a=["olmoe-8-h100"])
    app.file_uploader(key="compare-upload").set_value([("mine.yaml", content.encode(), "application/yaml")]).run()
    app.selectbox(key="compare-b").set_value("own file: mine.yaml").run()
    assert not app.exception
    assert "internal error" not in messages(app)
    assert "mine" in messages(app)


def test_uploads_are_capped_and_the_page_is_served_to_this_machine_alone() -> None:
    settings = tomllib.loads((MAIN.parent / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["maxUploadSize"] <= 50
    assert "enableCORS" not in settings["server"]
    assert "enableXsrfProtection" not in settings["server"]
    assert settings["server"]["address"] == "127.0.0.1"
