"""The fit of a recording on the page Traces, on a button and judged; and the recording as a scenario's load."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from moesim.catalog import recorded
from moesim.results.goodness_chart import goodness
from moesim.routing.profile import RoutingProfile
from moesim.scenario.loading import to_yaml
from moesim.traces import frames
from moesim.traces.counts import Recording, RouterCounts
from moesim.traces.counts_fit import fit_counts
from moesim.traces.fit import fit
from moesim.traces.trace import RouterTrace
from shared import answers, fields, links, shown, slow
from views import traces_files

PAGE = "traces"
FITS = 8


def section(name: str, found: Recording) -> None:
    """The law of a recording, and the buttons that make it a load."""
    st.subheader("As the load of a scenario", anchor=False)
    scenario = _scenario(found)
    if isinstance(found, RouterCounts):
        _counted(found, scenario)
        return
    with st.container(horizontal=True):
        file = name if not name.startswith(traces_files.UPLOADED) else str(traces_files.file_of(name))
        _use("Replay it in What if", scenario, {"trace": file}, f"{PAGE}-use-trace")
        profile = _profile(name, found)
        if profile is not None:
            _use("Use the fit in What if", scenario, {"fitted": profile[1]}, f"{PAGE}-use-fit")
    if profile is not None:
        _judged(name, *profile)


def _counted(found: RouterCounts, scenario: str) -> None:
    """The simple law of counts without tokens."""
    law = answers.attempt(lambda: fit_counts(found))
    shown.problems(law.problems, "No law")
    if law.value is not None:
        st.caption("Counts without tokens give a simple law: the spread of experts.")
        st.code(to_yaml({"routing": {"load": law.value}}), language="yaml")
        _use("Use this law in What if", scenario, law.value, f"{PAGE}-use-law")


def _scenario(found: Recording) -> str:
    """Which scenario the load goes to: the first whose model has such experts, unless chosen."""
    names = list(answers.scenario_files())
    alike = [name for name in names if _fits(name, found)]
    return fields.choice(PAGE, "scenario", "Scenario", names, (alike or names)[0])


def _fits(name: str, found: Recording) -> bool:
    scenario = answers.scenario(name).value
    same = scenario is not None and (scenario.model.n_experts, scenario.model.top_k)
    return same == (found.meta.experts, found.meta.top_k)


def _use(label: str, scenario: str, load: dict[str, Any], key: str) -> None:
    """A button that opens What if with this load."""
    if st.button(label, key=key, icon=":material/tune:"):
        links.go("what-if", {"scenario": scenario, "set": [f"routing.load={json.dumps(load)}"], "view": "routing"})


def _profile(name: str, trace: RouterTrace) -> tuple[RoutingProfile, str] | None:
    """The fitted law and its file or name: fitted here, or from the catalog; the button fits it."""
    fits = answers.kept("fits", FITS)
    shipped = name in recorded.names("fitted")
    slow.told_stopped(f"{PAGE}-fit")
    if not fits.holds(name):
        label = "Fit again" if shipped else "Fit"
        if st.button(label, key=f"{PAGE}-fit", icon=":material/model_training:"):
            _fit(name, trace)
    if fits.holds(name):
        kept: tuple[RoutingProfile, str] = fits.get(name, lambda: None)  # type: ignore[assignment]
        return kept
    return _shipped(name) if shipped else None


def _fit(name: str, trace: RouterTrace) -> None:
    """Fits the law, with a bar, and keeps it."""
    found = slow.run(f"{PAGE}-fit", "fitting", lambda progress: fit(trace, name=f"{name}-like", progress=progress))
    shown.problems(found.problems, "No fit")
    if found.value is not None:
        fitted = found.value
        answers.kept("fits", FITS).get(name, lambda: (fitted, str(traces_files.keep_profile(name, fitted))))
        st.rerun()


def _shipped(name: str) -> tuple[RoutingProfile, str]:
    read = lambda: RoutingProfile.load(recorded.find("fitted", name))  # noqa: E731
    return answers.kept("shipped-fits", FITS).get(name, read), name


def _judged(name: str, profile: RoutingProfile, where: str) -> None:
    """How good the fit is, and its file."""
    drawn = shown.kept_chart((PAGE, "goodness", where, profile.meta.name), lambda: goodness(profile))
    shown.chart_with_table(drawn, frames.goodness(profile), f"{PAGE}-goodness", "goodness")
    with st.container(horizontal=True):
        shown.download("Profile", lambda: _file(where), f"{name}-like.safetensors", f"{PAGE}-profile")


def _file(where: str) -> bytes:
    return recorded.find("fitted", where).read_bytes()
