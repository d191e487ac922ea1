"""What if, for requests that are served: the steady state at once, the whole run of requests on a button."""

from __future__ import annotations

import json
from typing import Any, get_args

import pandas as pd
import streamlit as st

from moesim import catalog
from moesim.provenance import Quantity
from moesim.scenario.loading import to_yaml
from moesim.scenario.serving import ServingScenario
from moesim.serving.report import write_serving_html
from moesim.serving.result import ServingResult
from moesim.serving.table import iterations_by_phase, quantities
from moesim.serving.words import LIMIT
from moesim.specs.workload import ComputeFormat
from shared import answers, shown, slow
from views.what_if_controls import PAGE, Board, all_settings, choice, dig, number, steps

HEADLINE = (
    "time_to_first_token_mean",
    "time_to_first_token_p99",
    "time_per_output_token_mean",
    "time_per_output_token_p99",
    "request_latency_mean",
    "output_tokens_per_second_per_gpu",
    "requests_per_second",
    "goodput_fraction",
    "kv_cache_use",
    "batch_requests",
    "rank_load_max_over_mean",
    "memory_per_gpu",
    "cost_per_million_output_tokens",
)
RUN = {"latency": "latency", "batch": "batch", "kv_cache": "kv-cache", "imbalance": "imbalance"}
_GPU_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 72, 96, 128, 144, 192, 256, 512)
_BUDGETS = tuple(1 << power for power in range(8, 18))
_BATCHES = tuple(1 << power for power in range(4, 13))
_RATES = (1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 160, 200, 300, 400, 600, 800, 1000)


def controls(on: Board, settings: tuple[str, ...]) -> None:
    """The controls of a serving scenario; every other key is reached by its name in "All changes"."""
    with st.expander("Model and hardware", expanded=True):
        choice(on, "Model", "model", catalog.names("models"))
        choice(on, "GPU", "cluster.gpu", catalog.names("gpus"))
        steps(on, "GPUs", "cluster.gpus", _GPU_COUNTS)
        choice(on, "Fabric", "cluster.fabric", catalog.names("fabrics"))
        on.complain(("model", "cluster", "instance", "disaggregated"))
    with st.expander("Requests and engine", expanded=True):
        _arrivals(on)
        steps(on, "Token budget of an iteration", "engine.token_budget", _BUDGETS)
        steps(on, "Most requests in a batch", "engine.max_requests", _BATCHES)
        on.complain(("workload", "engine"))
    with st.expander("Routing and precision", expanded=False):
        choice(on, "Load", "routing.load", catalog.names("profiles"))
        choice(on, "Compute", "precision.compute", get_args(ComputeFormat))
        on.complain(("routing", "precision", "placement", "dispatcher"))
    with st.expander("All changes", expanded=bool(on.wrong(("--set",)))):
        all_settings(on, settings)


def _arrivals(on: Board) -> None:
    """How often requests come, or how many are always there."""
    if dig(on.merged, "workload.arrivals.kind") == "closed":
        number(on, "Requests in flight", "workload.arrivals.concurrency")
        return
    if dig(on.merged, "workload.arrivals.rate") is not None:
        steps(on, "Requests a second", "workload.arrivals.rate", _RATES)


def show(asked: ServingScenario, baseline: dict[str, Quantity] | None) -> None:
    """The answer for a serving scenario."""
    found = answers.steady(asked)
    if found.value is None:
        shown.problems(found.problems, "No answer")
        return
    result = found.value
    shown.tiles(result.summary, HEADLINE, baseline)
    st.caption(f"Steady state in closed form: means over a long run; {_told(result)}")
    _pictures(asked, result)
    _run(asked)
    _files(asked, result)


def _pictures(asked: ServingScenario, result: ServingResult) -> None:
    """Where an iteration goes, and the fullest GPU."""
    left, right = st.columns(2, gap="large")
    with left:
        _chart(asked, result, "breakdown", _iterations(result), "iteration-by-part")
    with right:
        _chart(asked, result, "memory", shown.quantity_frame(quantities(result.memory, "B")), "memory-by-part")


def _iterations(result: ServingResult) -> pd.DataFrame:
    frames = [
        shown.quantity_frame(quantities(parts, "s")).assign(phase=phase)
        for phase, parts in iterations_by_phase(result.breakdown).items()
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _run(asked: ServingScenario) -> None:
    """The simulation of every request, once it has been asked for."""
    st.subheader("Every request", anchor=False)
    if not answers.simulated(asked):
        slow.told_stopped(f"{PAGE}-serve")
        st.caption(f"{asked.workload.requests:,} requests, event by event: latencies, batches, KV cache, imbalance.")
        if not st.button("Simulate", key=f"{PAGE}-serve", type="primary", icon=":material/play_arrow:"):
            return
        found = slow.run(f"{PAGE}-serve", "simulating", lambda progress: _simulated(asked, progress))
        if found.value is not None:
            st.rerun()
        shown.problems(found.problems, "No simulation")
        return
    known = answers.serve(asked)
    shown.problems(known.problems, "No simulation")
    if known.value is None:
        return
    result, steady = known.value, answers.steady(asked).value
    st.markdown("**Simulated**, with the change against the steady state (means against means)")
    st.caption(_told(result))
    shown.tiles(result.summary, HEADLINE, steady.summary if steady else None, "simulated")
    for kind, name in RUN.items():
        _chart(asked, result, kind, result.requests if kind == "latency" else result.iterations, name)


def _told(result: ServingResult) -> str:
    """What limits the deployment, and what stands against its numbers."""
    return ". ".join(shown.plain(note) for note in result.notes if note.startswith((LIMIT, "rates:", "warning:"))) + "."


def _simulated(asked: ServingScenario, progress: slow.Progress) -> bool:
    return bool(answers.serve(asked, progress))


def _chart(asked: ServingScenario, result: ServingResult, kind: str, frame: pd.DataFrame, name: str) -> None:
    drawn = shown.kept_chart(("serving", kind, result.road, asked.key), lambda: getattr(result.charts, kind)())
    shown.chart_with_table(drawn, frame, f"{PAGE}-serving-{kind}", name, columns=(1, 1, 1))


def _files(asked: ServingScenario, result: ServingResult) -> None:
    """What can be taken away."""
    latest: ServingResult | None = answers.serve(asked).value if answers.simulated(asked) else None
    taken = latest or result
    frame = shown.quantity_frame(taken.summary)
    with st.expander("All numbers"):
        st.dataframe(frame, hide_index=True, key=f"{PAGE}-serving-summary")
        st.markdown("\n".join(f"- {shown.plain(note)}" for note in taken.notes))
    text: Any = to_yaml(asked.document())
    with st.container(horizontal=True):
        shown.downloads(frame, f"{PAGE}-serving-summary", "summary")
        shown.download("Filled in (YAML)", text.encode, f"{asked.name}-filled.yaml", f"{PAGE}-serving-filled")
        html = lambda: write_serving_html(taken).encode()  # noqa: E731
        shown.download("Report (HTML)", html, f"{asked.name}.html", f"{PAGE}-serving-html")
        write = lambda: json.dumps(taken.as_dict()).encode()  # noqa: E731
        shown.download("Result (JSON)", write, f"{asked.name}.json", f"{PAGE}-serving-json")
