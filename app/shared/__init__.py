"""What the pages share. A page is one function `page()` in `views/NAME.py`; it holds no maths and keeps these customs.

    from shared import answers, links, shown          # siblings by plain name: app/ is on sys.path

    KEYS = ("scenario", "set", "metric")               # what this page keeps in its link

    def page() -> None:
        st.title("Sweep")
        state = links.state("sweep", KEYS)             # dict key -> tuple of text; first(state, key, default, allowed)
        metric = links.first(state, "metric", "step_time", allowed=METRICS)
        st.session_state["sweep-metric"] = metric      # a widget shows the state ...
        st.selectbox("Metric", METRICS, key="sweep-metric", on_change=_changed)   # ... and changes it in its callback:
        found = answers.scenario("olmoe-8-h100", ("cluster.gpus=16",))
        if found.problems:
            shown.problems(found.problems)             # mistakes are values; never let an exception reach Streamlit
        ...
        links.publish("sweep")                         # last line of every page, whichever way it ends

    def _changed() -> None:
        links.put("sweep", "metric", st.session_state["sweep-metric"])

- `answers`: `attempt(lambda: moesim.anything(...)) -> Answer(value, problems, infeasible)`; `scenario`, `estimate`,
  `simulate` are kept by content hash; `kept("name", size).get(key, ask)` keeps a page's own answers (all sessions share
  them: never change what comes out).
- `links`: `go("what-if", {"scenario": name, "set": [...]})` opens another page in a state; `address(...)` is its URL.
- `shown`: `tile` (number, change, range, basis), `chart_with_table(chart, frame, key, name)` (theme, table, downloads;
  `select=True` returns selections), `kept_chart(content key, build)`, `table`, `downloads`, `problems`, `plain`
  (text that Markdown leaves alone: use it for all text that a user or a file wrote), `dark()`.
- `files`: which files a scenario may name where other machines reach the dashboard: `answers` asks it before it loads.
- Widget keys begin with the page's name. Every widget that changes the state does so in `on_change` by `links.put`.
- Slow work runs on a button with `st.progress` (see `views/what_if_run.py`); nothing slow runs on page load.
- Tests: `tests/app_fixture.py` `open_page("sweep", scenario="olmoe-8-h100")` runs main.py on that page (AppTest).
"""
