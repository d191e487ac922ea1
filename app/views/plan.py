"""Plan: which GPUs and which layout train a model within the limits; a click opens a candidate in What if."""

from __future__ import annotations

import streamlit as st

from moesim.errors import UserError
from moesim.planner.plan import Plan
from moesim.planner.run import run
from shared import answers, links, shown, slow
from views import plan_answer
from views.plan_question import KEYS, PAGE, Asked, controls, explain

PLANS = 8


def page() -> None:
    """Draws the page."""
    links.state(PAGE, KEYS)
    if not answers.scenario_files():
        st.error("No scenario is shipped with this installation.")
        return
    with st.sidebar:
        asked = controls()
    st.title("Plan")
    st.markdown("Which GPUs, how many and how laid out, train the model within the limits, and why not the rest?")
    explain(asked)
    if asked.plan is not None:
        _answer(asked)
    links.publish(PAGE)


def _answer(asked: Asked) -> None:
    plans = answers.kept("plans", PLANS)
    if not plans.holds(asked.key):
        spec = asked.plan[0] if asked.plan else None
        st.caption(
            f"Searched: all degrees of parallelism, micro-batch, recompute, schedule and overlap. At most "
            f"{spec.candidates if spec else 0:,} layouts are screened, the best of them simulated."
        )
        slow.told_stopped(PAGE)
        if not st.button("Plan", key=f"{PAGE}-run", type="primary", icon=":material/search:"):
            return
        found = slow.run(PAGE, "planning", lambda progress: _plan(asked, progress))
        if found.value is None:
            shown.problems(found.problems, "No plan")
            return
        plan = found.value
        plans.get(asked.key, lambda: plan)
        st.rerun()
    plan_answer.show(plans.get(asked.key, lambda: _plan(asked, None)), asked.name, asked.key)


def _plan(asked: Asked, progress: slow.Progress | None) -> Plan:
    if asked.plan is None:
        raise UserError("there is nothing to plan")
    return run(*asked.plan, progress)
