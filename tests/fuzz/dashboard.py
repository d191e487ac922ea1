"""The dashboard's links: a page is drawn from the state that an address says, with Streamlit's own machinery but no
browser and no thread. A page ends before its charts, which show an answer and read no link.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

APP = Path(__file__).resolve().parents[2] / "app"
LINKS = (
    "what-if\nscenario=olmoe-8-h100\nset=cluster.gpus=16\nset=routing.capacity={factor: 1.25}\nview=routing",
    "what-if\nscenario=deepseek-v3-2048-h800\nset=parallelism.expert=32\npin=olmoe-8-h100\npin=cluster.gpus=64\nview=all",
    "what-if\nscenario=mixtral-8x7b-64-h100\nset=model=dbrx\nset=dispatcher.kind=deepep-normal\nset=recompute=full",
    "what-if\nscenario=serving/gpt-oss-120b-8-h100\nset=workload.arrivals.rate=5\nview=step",
    "plan\nscenario=olmoe-8-h100\nmodel=olmoe-1b-7b\ngpu=h100-sxm\ngpu=gb200-nvl72\ncount=8, 16\nfabric=none\ntokens=1",
    "plan\nscenario=olmoe-8-h100\nprice=h100-sxm=2.5\ndays=30\ndollars=2M$\ndropped_fraction=1%\npower=5 MW\ngpus=1024",
    "plan\nmemory_headroom=10%\nobjective=time\ncandidates=3000\nsimulate=2\nset=workload.global_batch=512\ncount=auto",
    "sweep\nscenario=olmoe-8-h100\nx=workload.micro_batch\nxs=1, 2, 4\ny=cluster.gpu\nys=h100-sxm, h200-sxm\nseeds=3",
    "sweep\nx=routing.capacity.factor\nxs=1.0, 1.5\nroad=simulate\nmetric=cost\nview=heat-map\nset=recompute=full",
    "compare\na=olmoe-8-h100\nb=olmoe-8-h100\nb=cluster.gpus=16\nc=mixtral-8x7b-64-h100\nd=own file: x.yaml",
    "traces\ntrace=cpu-small-gshard-top-2\nview=load\nlayer=1\nformat=csv\noptions=top_k=2\nscenario=olmoe-8-h100",
    "validation\nfile=gemm\nfile=routing\nunit=s\ncolour=gpu",
    "catalog\nkind=models\nsearch=deepseek\nname=models/deepseek-v3",
)


def seeds() -> list[bytes]:
    """A link or more into every page: the page's name, then `key=value`, line by line."""
    return [link.encode() for link in LINKS]


class _Bugs(logging.Handler):
    """Keeps what a page reports as an internal error, which it shows instead of a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the exception of a record."""
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


class Dashboard:
    """Draws pages; imports Streamlit when it is first asked to."""

    def __init__(self) -> None:
        self._pages: dict[str, Callable[[], object]] = {}
        self._bugs = _Bugs()

    def __call__(self, data: bytes) -> None:
        """One visit: a fresh session opens a link. Raises what the page could not handle."""
        if not self._pages:
            self._import()
        name, *lines = data.decode("utf-8", "replace").split("\n")
        pairs = [line.partition("=")[::2] for line in lines if "=" in line]
        draw = self._pages.get(name.strip(), self._pages["what-if"])
        self._bugs.found.clear()
        with self._heard(), self._session(urlencode([pair for pair in pairs if pair[0]], errors="replace")):
            draw()
        if self._bugs.found:
            raise self._bugs.found[0]

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Hears what pages log, and keeps it from the terminal."""
        logger = logging.getLogger("moesim.dashboard")
        logger.addHandler(self._bugs)
        before, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.removeHandler(self._bugs)
            logger.propagate = before

    @contextmanager
    def _session(self, query: str) -> Iterator[None]:
        """A fresh session of a browser that opened an address."""
        from streamlit.runtime.fragment import MemoryFragmentStorage
        from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
        from streamlit.runtime.pages_manager import PagesManager
        from streamlit.runtime.scriptrunner_utils.script_run_context import (
            SCRIPT_RUN_CONTEXT_ATTR_NAME,
            ScriptRunContext,
            add_script_run_ctx,
        )
        from streamlit.runtime.state import SafeSessionState, SessionState

        context: Any = ScriptRunContext(
            session_id="fuzz",
            _enqueue=lambda message: None,
            query_string=query,
            session_state=SafeSessionState(SessionState(), lambda: None),
            uploaded_file_mgr=MemoryUploadedFileManager("/upload"),
            main_script_path=str(APP / "main.py"),
            user_info={},
            fragment_storage=MemoryFragmentStorage(),
            pages_manager=PagesManager(str(APP / "main.py")),
        )
        thread = add_script_run_ctx(threading.current_thread(), context)
        try:
            context.reset(query_string=query)
            yield
        finally:
            delattr(thread, SCRIPT_RUN_CONTEXT_ATTR_NAME)

    def _import(self) -> None:
        sys.path.insert(0, str(APP))
        from shared import links
        from views import catalog, compare_slots, plan_question, sweep_question, traces, validation

        self._pages = {
            "what-if": _what_if,
            "plan": _page(
                plan_question.PAGE, plan_question.KEYS, lambda: plan_question.explain(plan_question.controls())
            ),
            "sweep": _page(sweep_question.PAGE, sweep_question.KEYS, sweep_question.controls),
            "compare": lambda: compare_slots.slots(links.state("compare", compare_slots.SLOTS)),
            "traces": _page(traces.PAGE, traces.KEYS, lambda: (traces._choice(), traces._upload())),
            "validation": validation.page,
            "catalog": catalog.page,
        }


def _page(page: str, keys: Any, question: Callable[[], object]) -> Callable[[], None]:
    """A page as far as its question, and the link that it then writes."""
    from shared import links

    def draw() -> None:
        links.state(page, keys)
        question()
        links.publish(page)

    return draw


def _what_if() -> None:
    """What if without its answer: the scenario with all changes, every control, and what is wrong beside each."""
    from shared import answers, links, shown
    from views import what_if, what_if_board, what_if_serving

    files, serving = answers.scenario_files(), answers.serving_files()
    state = links.state(what_if.PAGE, what_if.KEYS)
    name = links.first(state, "scenario", what_if.DEFAULT, [*files, *serving])
    settings, served = state.get("set", ()), name in serving
    read: Any = answers.serving if served else answers.scenario
    asked, first = read(name, settings), read(name)
    board = what_if.board(first.need(), settings, asked.problems)
    (what_if_serving.controls if served else what_if_board.controls)(board, settings)
    what_if._pins(name, settings, state.get("pin", ()))
    shown.problems(asked.problems, "This combination does not run")
    links.publish(what_if.PAGE)
