"""What if: one scenario, every knob, and the closed form's answer at once; the simulation on a button."""

from __future__ import annotations

import streamlit as st

import moesim
from moesim.serving.result import ServingResult
from shared import answers, links, shown
from views import what_if_charts, what_if_run, what_if_serving
from views.what_if_board import controls
from views.what_if_controls import PAGE, board, remember

KEYS = ("scenario", "set", "pin", "view")
DEFAULT = "deepseek-v3-2048-h800"
HEADLINE = (
    "step_time",
    "tokens_per_second_per_gpu",
    "model_flops_utilization",
    "communication_fraction",
    "dropped_token_fraction",
    "rank_load_max_over_mean",
    "memory_per_gpu",
    "training_time",
    "cost",
    "goodput_fraction",
)
VIEWS = {
    "step": "Step and memory",
    "routing": "Routing",
    "network": "Network",
    "timeline": "Timeline",
    "all": "All numbers",
}


def page() -> None:
    """Draws the page."""
    files, serving = answers.scenario_files(), answers.serving_files()
    if not files:
        st.error("No scenario is shipped with this installation.")
        return
    state = links.state(PAGE, KEYS)
    names = [*files, *serving]
    name = links.first(state, "scenario", DEFAULT if DEFAULT in files else names[0], names)
    draw = _serving if name in serving else _training
    draw(name, state, names)
    links.publish(PAGE)


def _training(name: str, state: links.State, names: list[str]) -> None:
    """A training step."""
    settings = state.get("set", ())
    asked, first = answers.scenario(name, settings), answers.scenario(name)
    if first.value is None:
        shown.problems(first.problems, f"The shipped scenario {name} cannot be read")
        return
    answer = answers.estimate(asked.value) if asked.value else answers.Answer[moesim.Result]()
    problems = (*asked.problems, *answer.problems)
    fit = answers.memory_problem(asked.value, answer.value) if asked.value and answer.value else ()
    with st.sidebar:
        _picker(names, name)
        controls(board(first.value, settings, (*problems, *fit)), settings)
    st.title("What if")
    st.markdown(shown.plain(first.value.question or name))
    _pins(name, settings, state.get("pin", ()))
    shown.problems(problems, "This combination does not run; each reason stands beside its control")
    shown.problems(fit, "It does not fit in memory; the numbers are those if it did")
    if asked.value and answer.value:
        pin = state.get("pin", ())
        baseline = _baseline(pin, name) if pin or settings else None
        _answer(asked.value, answer.value, baseline, links.first(state, "view", "step", VIEWS))


def _serving(name: str, state: links.State, names: list[str]) -> None:
    """Requests that are served."""
    settings = state.get("set", ())
    asked, first = answers.serving(name, settings), answers.serving(name)
    if first.value is None:
        shown.problems(first.problems, f"The shipped scenario {name} cannot be read")
        return
    with st.sidebar:
        _picker(names, name)
        what_if_serving.controls(board(first.value, settings, asked.problems), settings)
    st.title("What if")
    st.markdown(shown.plain(first.value.question or name))
    st.caption("This scenario serves requests; those of training have a step, its layout and its timeline here.")
    _pins(name, settings, state.get("pin", ()))
    shown.problems(asked.problems, "This combination does not run; each reason stands beside its control")
    if asked.value:
        pin = state.get("pin", ())
        baseline = _baseline(pin, name) if pin or settings else None
        what_if_serving.show(asked.value, baseline.summary if baseline else None)


def _picker(names: list[str], name: str) -> None:
    key = f"{PAGE}-scenario"
    st.session_state[key] = name
    st.selectbox("Scenario", names, key=key, on_change=_picked)


def _picked() -> None:
    links.put(PAGE, "scenario", st.session_state[f"{PAGE}-scenario"])
    links.put(PAGE, "set", None)
    remember("")


def _pins(name: str, settings: tuple[str, ...], pin: tuple[str, ...]) -> None:
    """What the numbers are compared with, and the buttons that change it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Pin as baseline", key=f"{PAGE}-pin", icon=":material/push_pin:", on_click=_pin, args=(name, settings)
        )
        if pin:
            st.button("Unpin", key=f"{PAGE}-unpin", on_click=links.put, args=(PAGE, "pin", None))
        if settings:
            st.button("Undo all changes", key=f"{PAGE}-reset", on_click=links.put, args=(PAGE, "set", None))
        if settings or pin:
            st.button("Compare", key=f"{PAGE}-compare", on_click=_compare, args=(pin or (name,), (name, *settings)))
        base, changes = (pin[0], pin[1:]) if pin else (name, ())
        said = f"{base}{' with ' + ', '.join(changes) if changes else ' as shipped'}"
        st.caption(f"Changes are told against {'the pin: ' if pin else ''}{shown.plain(said)}")


def _compare(baseline: tuple[str, ...], now: tuple[str, ...]) -> None:
    links.go_later("compare", {"a": baseline, "b": now})


def _pin(name: str, settings: tuple[str, ...]) -> None:
    links.put(PAGE, "pin", (name, *settings))


def _baseline(pin: tuple[str, ...], name: str) -> moesim.Result | ServingResult | None:
    """The answer for the pinned scenario, or for the shipped one."""
    base, settings = (pin[0], pin[1:]) if pin else (name, ())
    if base in answers.serving_files():
        served = answers.serving(base, settings).value
        return answers.steady(served).value if served else None
    found = answers.scenario(base, settings).value
    return answers.estimate(found).value if found else None


def _answer(
    asked: moesim.Scenario, result: moesim.Result, baseline: moesim.Result | ServingResult | None, view: str
) -> None:
    shown.tiles(result.summary, HEADLINE, baseline.summary if baseline else None)
    st.caption(
        "Closed form. Below each number: its range and where it comes from (measured, fitted, datasheet, paper, "
        "derived, assumed); the question mark explains it."
    )
    key = f"{PAGE}-view"
    st.session_state[key] = view
    st.segmented_control(
        "View", list(VIEWS), key=key, format_func=VIEWS.__getitem__, on_change=_viewed, label_visibility="collapsed"
    )
    if view == "timeline":
        what_if_run.timeline(asked)
    elif view == "all":
        what_if_run.everything(asked, result)
    else:
        what_if_charts.draw(view, asked, result, baseline if isinstance(baseline, moesim.Result) else None)


def _viewed() -> None:
    links.put(PAGE, "view", st.session_state[f"{PAGE}-view"] or "step")
