"""What no line of the package or the dashboard may do, read from the sources; and how the dashboard keeps to itself."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "moesim").rglob("*.py"), *(ROOT / "app").rglob("*.py")])

# What runs text or data, or reaches out; each with the only files that may name it, and why they may.
MODULES: dict[str, dict[str, str]] = {
    "pickle": {
        "moesim/traces/torch_files.py": "for the name of torch's error",
        "moesim/traces/torch_run.py": "for the name of torch's error",
        "moesim/routing/_kernels.py": "for the name of an error of numba's own cache",
    },
    "pickletools": {"moesim/traces/pickle_size.py": "reads opcodes and builds nothing"},
    "subprocess": {
        "moesim/dashboard_cli.py": "starts the dashboard, by words of its own",
        "moesim/sweeps/executors.py": "starts workers, by code of its own",
        "moesim/sweeps/dask_executor.py": "starts workers, by code of its own",
        "moesim/planner/pool.py": "starts workers, by code of its own",
        "moesim/measurement/torch_device.py": "asks the driver's tool for clocks",
        "moesim/traces/torch_record.py": "asks the driver's tool for the GPU's name",
    },
    "socket": {"moesim/dashboard_cli.py": "tries whether the port is free"},
    "importlib": {
        "app/server.py": "loads a page ahead, by its own name",
        "moesim/dashboard_cli.py": "looks whether streamlit is there",
        "moesim/traces/corpus.py": "looks where packages stand",
        "moesim/results/page.py": "reads the release of the chart library",
        "moesim/__init__.py": "opens rooms of the package, from a table of its own",
        "moesim/network/fluid.py": "opens one of two rooms, by name",
        "moesim/planner/serving_plan.py": "opens rooms of the package, by name",
    },
    "urllib": {"app/shared/links.py": "writes the parameters of an address"},
    **{
        name: {}
        for name in (
            "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop", "runpy", "ctypes", "cffi", "pty",
            "urllib3", "http", "httpx", "requests", "aiohttp", "ftplib", "smtplib", "telnetlib", "xmlrpc",
            "xml", "webbrowser", "jinja2",
        )
    },
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnv", "spawnl", "startfile"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader"},
    "pd": {"read_pickle", "eval", "read_html", "read_clipboard"},
    "tempfile": {"mktemp"},
    "st": {"html", "iframe", "components"},
    "alt": {"Href", "Url", "UrlData"},
    "np": {"fromregex", "loadtxt"},
}
ALLOWED = {("app/main.py", "st.html"): "the page's own style sheet"}
# Where a text that is no literal is a template: always one of the project's own.
TEMPLATES = {
    "moesim/specs/explain.py": "the sentences of _SAY",
    "moesim/curves.py": "the paths that its callers spell out",
}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression; empty where it is none."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) and not node.level else []


def faults(path: Path) -> Iterator[str]:
    """What a file does that it may not."""
    own = name_of(path)
    for node in nodes(path):
        at = f"{own}:{getattr(node, 'lineno', 0)}"
        for module in imported(node):
            if module in MODULES and own not in MODULES[module]:
                yield f"{at} imports {module}"
        if isinstance(node, ast.Attribute):
            said = dotted(node)
            root, _, rest = said.partition(".")
            if rest in METHODS.get(root, ()) and (own, said) not in ALLOWED:
                yield f"{at} uses {said}"
        if isinstance(node, ast.Call):
            yield from (f"{at} {what}" for what in wrong_call(node, own))


def wrong_call(node: ast.Call, own: str) -> Iterator[str]:
    said = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if said in CALLS:
        yield f"calls {said}"
    if said == "torch.load" and not is_constant(given.get("weights_only"), True):
        yield "calls torch.load without weights_only=True"
    if said in ("np.load", "np.lib.format.read_array") and not is_constant(given.get("allow_pickle"), False):
        yield f"calls {said} without allow_pickle=False"
    if "shell" in given and not is_constant(given["shell"], False):
        yield "runs a shell"
    if "unsafe_allow_html" in given or "unsafe_allow_javascript" in given or {"href", "url"} & given.keys():
        yield "lets text be a page or an address"
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("mark_image", "format_map", "query"):
        yield f"calls {node.func.attr}"
    template = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "format" else None
    if template is not None and not is_own(template) and own not in TEMPLATES:
        yield "takes a text that it does not hold itself as a template"


def is_own(template: ast.AST) -> bool:
    """Whether a template is a literal, or a constant of the module or an entry of one."""
    held = template.value if isinstance(template, ast.Subscript) else template
    return isinstance(held, ast.Constant) or (isinstance(held, ast.Name) and held.id.isupper())


def is_constant(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_runs_text_obeys_data_or_reaches_out() -> None:
    assert len(FILES) > 500
    assert not [fault for path in FILES for fault in faults(path)]


def test_what_may_is_still_there() -> None:
    """An exception that nobody needs any more goes away."""
    for module, files in MODULES.items():
        for own in files:
            assert module in [name for node in nodes(ROOT / own) for name in imported(node)], (module, own)
    for own, said in ALLOWED:
        assert said in [dotted(node) for node in nodes(ROOT / own)], own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eval(x)", "calls eval"),
        ("import yaml\nyaml.load(x)", "uses yaml.load"),
        ("from pickle import loads", "imports pickle"),
        ("import urllib.request", "imports urllib"),
        ("np.load(x)", "without allow_pickle=False"),
        ("torch.load(x, weights_only=flag)", "without weights_only=True"),
        ("run(x, shell=True)", "runs a shell"),
        ("st.markdown(x, unsafe_allow_html=True)", "lets text be a page"),
        ("st.html(x)", "uses st.html"),
        ("alt.Href('x')", "uses alt.Href"),
        ("name.format(x)", "as a template"),
        ("frame.query(x)", "calls query"),
    ],
)
def test_the_reading_of_sources_finds(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(text)
    found = list(faults(tmp_path / "a.py"))
    assert len(found) == 1
    assert said in found[0]


def test_the_dashboard_listens_and_tells_alone_however_it_is_started(tmp_path: Path) -> None:
    """Settings as `streamlit run app/main.py` reads them in any folder, with an empty home."""
    if not importlib.util.find_spec("streamlit"):
        pytest.skip("streamlit is not installed: pip install 'moesim[app]'")
    asks = (
        "from streamlit import config\n"
        f"config._main_script_path = {str(ROOT / 'app' / 'main.py')!r}\n"
        "config.get_config_options(force_reparse=True)\n"
        "names = ('browser.gatherUsageStats', 'server.address', 'server.enableCORS', 'server.enableXsrfProtection',\n"
        "         'server.maxUploadSize', 'server.showEmailPrompt', 'client.showErrorDetails')\n"
        "print([config.get_option(name) for name in names])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", asks],
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[False, '127.0.0.1', True, True, 50, False, 'none']"


# The release that mends what is known to be wrong with those before it.
MENDED = {
    "pyarrow": (14, 0, 1),  # CVE-2023-47248: code run by Arrow and Parquet files
    "pydantic": (2, 4, 0),  # CVE-2024-3772: an address that takes for ever to check
    "pyyaml": (5, 4),  # CVE-2020-14343: code run by full_load
    "streamlit": (1, 54),  # CVE-2024-42474, CVE-2026-33682: files and hosts of the machine, on Windows
    "torch": (2, 10),  # CVE-2025-32434, CVE-2026-24747: code run in spite of weights_only
    "distributed": (2026, 1),  # CVE-2026-23528: code run by a page of its dashboard
}


def test_the_lowest_releases_taken_have_no_known_hole() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    found = 0
    for line in listed:
        name, bound, release = line.partition(">=") if ">=" in line else line.partition("==")
        if name in MENDED:
            found += 1
            assert bound, f"{name} has no lowest release"
            assert tuple(map(int, release.split("."))) >= MENDED[name], line
    assert found >= len(MENDED)
