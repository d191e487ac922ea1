"""Whole files and drafts: what a killed writer leaves is cleared away, what a living one holds is not."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest

from moesim.calibration import fit
from moesim.errors import FileError, MissingPackageError, UserError
from moesim.files import alone_in, draft_folder, run_in, target_of, whole_file, write_whole
from moesim.results import page
from moesim.results.store import save_files
from moesim.routing import _kernels
from moesim.sweeps import dask_executor

try:
    from moesim.traces import torch_train
    from moesim.traces.corpus import gather
    from moesim.traces.torch_door import torch
    from moesim.traces.torch_text import tokenise
    from moesim.traces.torch_world import join
    from moesim.traces.training import preset

    # Threads that wait for each other are slow on a busy machine, and this model is tiny.
    torch.set_num_threads(1)
    TORCH = True
except MissingPackageError:
    TORCH = False
PACKAGE = Path(__file__).parents[1] / "moesim"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old\r\n")
    with pytest.raises(KeyboardInterrupt):
        broken_off(path)
    assert path.read_bytes() == b"old\r\n"
    with whole_file(path, durable=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def broken_off(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old\r\n"
        raise KeyboardInterrupt


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "no" / "file", Path("/dev/null")):
        with pytest.raises(FileError, match="cannot write"):
            write_whole(path, b"")
    with pytest.raises(FileError, match="cannot write"):
        write_whole(target_of(tmp_path / "a") / "file", b"")


def test_only_the_drafts_of_the_dead_are_cleared_away(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from moesim.files import draft_folder\n"
    code += "with draft_folder(Path(sys.argv[1])) as place: (place / 'draft').touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (dead,) = names(tmp_path)
    assert (tmp_path / dead / "draft").exists()
    (tmp_path / ".moesim-mine").write_text("a file of the user's is not a draft")
    with draft_folder(tmp_path) as first, draft_folder(tmp_path) as second:
        assert names(tmp_path) == sorted([".moesim-mine", first.name, second.name])
    assert names(tmp_path) == [".moesim-mine"]


def test_a_draft_that_is_cleared_away_too_early_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take a new folder for a dead one's, before its lock is there."""
    import moesim.files

    make, made = moesim.files.tempfile.mkdtemp, []

    def cleared(**where: Any) -> str:
        made.append(make(**where))
        if len(made) < 3:
            os.rmdir(made[-1])
        return str(made[-1])

    monkeypatch.setattr(moesim.files.tempfile, "mkdtemp", cleared)
    write_whole(tmp_path / "a", b"whole")
    assert len(made) == 3
    assert names(tmp_path) == ["a"]


def test_who_comes_second_waits_and_then_is_told(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path),
        pytest.raises(FileError, match="another process is writing there"),
        alone_in(tmp_path, patience=0.05),
    ):
        pass
    with alone_in(tmp_path, patience=0.0):
        pass


def test_locks_that_the_file_system_has_not_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("moesim.files.fcntl.flock", refused)
    (tmp_path / ".moesim-whose").mkdir()
    with alone_in(tmp_path):
        write_whole(tmp_path / "a", b"whole")
    assert names(tmp_path) == [".moesim-whose", "a"]


def test_files_of_one_run_go_and_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path, {"table.csv": "old", "extra.svg": "old", "all.json": "old"})
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        seen.append(names(tmp_path))
        replace(source, target)

    monkeypatch.setattr("moesim.results.store.os.replace", watched)
    save_files(tmp_path, {"table.csv": "new", "all.json": "new"}, others=["extra.svg"])
    assert [[name for name in there if not name.startswith(".")] for there in seen] == [["table.csv"], ["table.csv"]]
    assert names(tmp_path) == ["all.json", "table.csv"]


def test_machine_code_that_cannot_be_kept_or_read_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    asked: list[str] = []

    @contextmanager
    def full(self: object, path: str) -> Iterator[None]:
        asked.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    with monkeypatch.context() as patch:
        patch.setattr("numba.core.caching.IndexDataCacheFile._open_for_write", full)
        assert _kernels.compiled(_twice)(3) == 6
    assert asked
    assert _kernels.compiled(_twice)(3) == 6
    written = [path for path in tmp_path.rglob("*.nb*") if path.is_file()]
    assert len(written) == 2
    for path in written:
        path.write_bytes(path.read_bytes()[:20])
    assert _kernels.compiled(_twice)(3) == 6


def _twice(number: int) -> int:
    return 2 * number


def test_without_a_home_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know has no home: "~" is then no place, least of all under this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr(page.vl_convert, "javascript_bundle", lambda code: code)
    page._bundle.cache_clear()
    assert page._cache_file() is None
    assert page.html_page("title", ["<p>body</p>"]).endswith("</html>\n")
    page._bundle.cache_clear()
    assert names(tmp_path) == []


@pytest.mark.parametrize("stated", ["99999999999999999", "²", "today"])
def test_a_day_that_is_none_is_the_users_mistake(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fit.DATE_VARIABLE, stated)
    with pytest.raises(UserError, match=r"SOURCE_DATE_EPOCH is .* must be a whole number of seconds"):
        fit._today()


def test_a_machine_without_a_loopback_has_no_dask_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: object) -> None:
        raise RuntimeError("Cluster failed to start: timed out")

    monkeypatch.setattr(dask_executor, "_distributed", lambda: SimpleNamespace(LocalCluster=failing))
    with pytest.raises(UserError, match="--executor local needs no network"):
        list(dask_executor.DaskPool(workers=1).run(iter([])))


def test_no_duration_is_taken_from_the_time_of_day() -> None:
    """The clock may be set while we run. The day itself is asked in three places, which write it down."""
    days = {"calibration/fit.py", "calibration/serving_fit.py", "calibration/step_entries.py", "measurement/outcome.py"}
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    for path in [path for path, text in texts.items() if re.search(r"\btime\.|\bdatetime\b|\bdate\.", text)]:
        asked = {
            f"{ast.unparse(node.value)}.{node.attr}"
            for node in ast.walk(ast.parse(texts[path]))
            if isinstance(node, ast.Attribute)
        }
        assert not asked & {"time.time", "time.time_ns", "time.localtime", "time.gmtime"}, path
        if any(name.endswith(("datetime.now", "datetime.utcnow", "date.today")) for name in asked):
            assert path.relative_to(PACKAGE).as_posix() in days, path


@pytest.mark.skipif(not TORCH, reason="torch is not installed (extra `trace`)")
def test_a_run_that_is_killed_between_its_log_and_its_trace_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, domain in enumerate(("one", "two", "three")):
        (tmp_path / "text" / domain).mkdir(parents=True)
        (tmp_path / "text" / domain / "a.txt").write_bytes(b"%d brown foxes jump over the dog. " % number * 3000)
    config = preset("tiny").runs[0]
    text = tokenise(
        gather(tmp_path / "text", config.text_limit), config.vocabulary, config.sequence_length, join().device
    )
    whole = torch_train.train(config, tmp_path / "whole", text=text)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch_train, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            torch_train.train(config, tmp_path / "killed", text=text)
    assert names(tmp_path / "killed") == [".lock", "log.csv", "switch-top-1.checkpoint.pt"]
    resumed = torch_train.train(config, tmp_path / "killed", resume=True, text=text)
    assert [path.read_bytes() for path in resumed] == [path.read_bytes() for path in whole]
    assert names(tmp_path / "killed") == names(tmp_path / "whole")
    with run_in(tmp_path / "whole", "training run"), pytest.raises(UserError, match=r"another training run \(process"):
        torch_train.train(config, tmp_path / "whole", text=text)
