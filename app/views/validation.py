"""Validation: what moesim predicts against what was measured, by kind, GPU and model; one case file at a time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

import moesim
from moesim.validation import cases, charts, frame
from moesim.validation.run import Validation
from moesim.validation.statistics import Stats
from shared import answers, fields, links, shown, slow

PAGE = "validation"
KEYS = ("file", "unit", "colour")
BY = {"kind": "kind", "gpu": "GPU", "model": "model", "library": "library or stack", "metric": "metric"}
FILES = 32
WORST = ["id", "metric", "measured", "predicted", "error", "tolerance", "gpu", "model", "library", "known"]


def page() -> None:
    """Draws the page."""
    links.state(PAGE, KEYS)
    st.title("Validation")
    st.markdown("Every measured case that comes with moesim, predicted by the release that runs here.")
    files = {path.stem: path for path in cases.shipped()}
    chosen = fields.choices(PAGE, "file", "Case files (all unless chosen)", files) or tuple(files)
    found = _validated({name: files[name] for name in chosen})
    if found is not None:
        _show(found, chosen)
    links.publish(PAGE)


def _validated(files: dict[str, Path]) -> Validation | None:
    """The files' rows together; those that were not asked yet are predicted on a button."""
    known = answers.kept("validations", FILES)
    missing = [name for name in files if not known.holds(name)]
    if missing:
        slow.told_stopped(PAGE)
        st.caption(f"{len(missing)} of {len(files)} files are not predicted yet; all of them take about half a minute.")
        if not st.button("Predict", key=f"{PAGE}-run", type="primary", icon=":material/play_arrow:"):
            return None
        found = slow.run(PAGE, "predicting", lambda progress: _predict(files, missing, progress))
        if found.problems:
            shown.problems(found.problems)
            return None
        st.rerun()
    parts = [known.get(name, lambda path=path: moesim.validate([path])) for name, path in files.items()]
    rows = tuple(row for part in parts for row in part.cases)
    return Validation(rows, tuple(limit for part in parts for limit in part.limits))


def _predict(files: dict[str, Path], missing: list[str], progress: slow.Progress) -> bool:
    """Predicts the missing files, each kept as soon as it is there."""
    known = answers.kept("validations", FILES)
    for place, name in enumerate(missing):

        def heard(what: str, share: float, at: int = place, file: str = name) -> None:
            progress(f"{file}, file {at + 1} of {len(missing)}", (at + share) / len(missing))

        found = moesim.validate([files[name]], progress=heard)
        known.get(name, lambda found=found: found)
    return True


def _show(found: Validation, chosen: tuple[str, ...]) -> None:
    rows = answers.kept("validation-frames", FILES).get(chosen, lambda: frame.rows_frame(found))
    coverage = "" if found.coverage is None else f" · {found.coverage:.0%} of measured values inside the stated range"
    st.caption(f"{len({row.id for row in found.cases}):,} cases, {len(found.cases):,} values{coverage}")
    units = charts.units(found)
    if units:
        with st.container(horizontal=True, vertical_alignment="bottom"):
            unit = fields.choice(PAGE, "unit", "What was measured", units, units[0], told=charts.unit_label)
            by = fields.choice(PAGE, "colour", "Colour by", BY, "kind", told=BY.__getitem__)
        drawn = shown.kept_chart(("scatter", chosen, unit, by), lambda: charts.scatter(found, unit, by))  # type: ignore[arg-type]
        shown.chart_with_table(drawn, rows[rows["unit"] == unit], f"{PAGE}-scatter", "cases")
    groups = {"kind": found.by_kind, "GPU": found.by_gpu, "model": found.by_model, "library": found.by_library}
    for name, stats in groups.items():
        if stats:
            _errors(chosen, name, stats)
    _lists(found, rows)


def _errors(chosen: tuple[str, ...], name: str, stats: dict[str, Stats]) -> None:
    picture = shown.kept_chart(("errors", chosen, name), lambda: charts.errors(stats, name))
    shown.chart_with_table(picture, frame.stats_frame(stats), f"{PAGE}-{name}", f"errors-by-{name.lower()}")


def _lists(found: Validation, rows: pd.DataFrame) -> None:
    """The cases that are furthest off, those without a prediction, and broken tolerances."""
    errors = rows[rows["error"].notna()]
    with st.expander("Furthest off"):
        worst = errors.reindex(errors["error"].abs().sort_values(ascending=False).index).head(20)
        percent = {name: st.column_config.NumberColumn(format="percent") for name in ("error", "tolerance")}
        st.dataframe(worst[WORST], hide_index=True, column_config=percent, key=f"{PAGE}-worst")
    silent = rows[rows["predicted"].isna()]
    if len(silent):
        with st.expander(f"Without a prediction: {len(silent)}"):
            st.dataframe(silent[["id", "metric", "measured", "reason"]], hide_index=True, key=f"{PAGE}-silent")
    for title, told in (("Broken tolerances", found.broken), ("Known failures", found.known_failures)):
        if told:
            with st.expander(f"{title}: {len(told)}"):
                st.markdown("\n".join(f"- {shown.plain(line)}" for line in told))
