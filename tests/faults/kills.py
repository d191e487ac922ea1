"""Kills a command with SIGKILL at a moment drawn from a seed, reads what it left, and has it go on.

A moment is a share of the command's own time, or one of the files that it makes, moves or removes, and a little later.
A folder goes through a chain of kills before the command may end; half of the chains begin with an older answer there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .hooks import WATCH, hook
from .nursery import NEEDED, TORCH, Nursery
from .reading import Content, content, litter, mixed, shown, torn
from .subjects import SUBJECTS, Subject, environment, make_inputs
from .watched import Event, events, phase

LATER = (0.0, 0.0005, 0.002, 0.008, 0.03)
"""Seconds between an event and the kill: before it, or while what it began is under way."""


@dataclass
class Found:
    """What the kills of a run have shown."""

    phases: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: int = 0
    ends: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Kills that met a living process."""
        return sum(self.phases.values())


@dataclass(frozen=True)
class Moment:
    """When: after so many seconds of the clock, or `later` than event number `event`."""

    seconds: float = 0.0
    event: int = 0
    later: float = 0.0


class Victim:
    """One command, the bytes of its answers when nothing disturbs it, and how it takes kills."""

    def __init__(self, subject: Subject, work: Path, inputs: Path, found: Found) -> None:
        self.subject, self.work, self.inputs, self.found = subject, work / subject.name.replace(" ", "-"), inputs, found
        self.hook = hook(work / "hook", WATCH)
        self.answers: list[Content] = []
        self.events = 0
        self.seconds = 0.0

    def learn(self, nursery: Nursery) -> None:
        """Runs both questions undisturbed: one from its start by the clock, and the other to count its events."""
        old, new = self._folder("whole-1"), self._folder("whole-0")
        begin = time.monotonic()
        code, said, _ = self._cold(self._words(old, 1), old, Moment())
        self.seconds = time.monotonic() - begin
        assert code == 0, f"{self.subject.name}: {said}"
        if not self.subject.timed:
            nursery.warm(self.subject.words(self.inputs, self._folder("warm"), 0))
        code, said, done = self._in_nursery(nursery, self._words(new, 0), new, Moment())
        assert code == 0, f"{self.subject.name}: {said}"
        self.answers, self.events = [content(new), content(old)], len(done)

    def chain(self, nursery: Nursery, random: np.random.Generator, kills: int, by_event: bool) -> None:
        """So many kills one after another in one folder, and then an end in peace.

        Those at an event meet a child of the nursery; those by the clock a command from its start, imports included.
        """
        out = self._folder(f"out-{self.found.ends}")
        if random.integers(2) and not self.subject.resumes:
            self._in_nursery(nursery, self._words(out, 1), out, Moment())
        for _ in range(kills):
            words, before = self._words(out, 0), content(out)
            kept = {path: path.stat().st_mtime_ns for path in self._kept(out)}
            if by_event:
                moment = Moment(event=int(random.integers(1, self.events + 1)), later=float(random.choice(LATER)))
                code, said, done = self._in_nursery(nursery, words, out, moment)
            else:
                moment = Moment(seconds=float(random.uniform(0.0, self.seconds)))
                code, said, done = self._cold(words, out, moment)
            self._count(code, done)
            where = f"{self.subject.name}, {moment}, {done[-1] if done else 'no event'}"
            self._judge(out, where, said)
            self.found.wrong += [f"{where}: made {path.name} again" for path in kept if _changed(path, kept[path])]
            self.found.wrong += [f"{where}: {line}" for line in self._repeated(done, before)]
        self._end(nursery, out)

    def _folder(self, name: str) -> Path:
        (self.work / name).mkdir(parents=True)
        return self.work / name

    def _words(self, out: Path, which: int) -> list[str]:
        resumed = ["--resume"] if self.subject.resumes and content(out) else []
        return [*self.subject.words(self.inputs, out, which), *resumed]

    def _in_nursery(
        self, nursery: Nursery, words: list[str], out: Path, moment: Moment
    ) -> tuple[int, str, list[Event]]:
        log, said = self.work / "events.log", self.work / "said.log"
        log.unlink(missing_ok=True)
        code = nursery.run(words, said, folder=str(out), log=str(log), last=moment.event, delay=moment.later)
        return code, said.read_text(), events(log)

    def _cold(self, words: list[str], out: Path, moment: Moment) -> tuple[int, str, list[Event]]:
        log = self.work / "events.log"
        log.unlink(missing_ok=True)
        told = {"FAULTS_PARENT": str(os.getpid()), "FAULTS_FOLDER": str(out), "FAULTS_LOG": str(log)}
        with subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(first=self.hook, **told),
        ) as process:
            if moment.seconds:
                time.sleep(moment.seconds)
                process.kill()
            said = process.communicate()[1]
        return process.returncode, said, events(log)

    def _count(self, code: int, done: list[Event]) -> None:
        if code == -signal.SIGKILL:
            self.found.phases[self.subject.name, phase(done)] += 1
        else:
            self.found.late += 1

    def _judge(self, out: Path, where: str, said: str) -> None:
        found = content(out)
        wrong = [f"torn {name}" for name in torn(found)]
        if not self.subject.timed:
            known = [self._partly(found), *self.answers] if self.subject.resumes else self.answers
            wrong += [f"neither old nor new: {name}" for name in mixed(found, known, self.subject.mark or "no such")]
        if "Traceback" in said:
            wrong.append(f"traceback: {said[-300:]}")
        self.found.wrong += [f"{where}: {line}" for line in wrong]

    def _partly(self, found: Content) -> Content:
        """Of a command that goes on: its checkpoints and its log, whose bytes no undisturbed run ends with."""
        return {name: data for name, data in found.items() if name.endswith((".checkpoint.pt", "log.csv"))}

    def _kept(self, out: Path) -> Iterator[Path]:
        """Files that a command that goes on has no reason to write again."""
        if self.subject.resumes:
            yield from out.rglob("points/*/*.json")
            yield from (path for path in out.glob("*.safetensors") if not path.name.startswith("."))

    def _repeated(self, done: list[Event], before: Content) -> list[str]:
        """Answers that were there and were stored again."""
        stored = Counter(event.path for event in done if event.what == "os.rename" and "points/" in event.path)
        return [f"stored {name} again" for name in stored if name in before or stored[name] > 1]

    def _end(self, nursery: Nursery, out: Path) -> None:
        """Lets the command end, which has to give the undisturbed run's bytes and to clear up."""
        before = content(out)
        code, said, _ = self._in_nursery(nursery, self._words(out, 0), out, Moment())
        found, name = content(out), self.subject.name
        self.found.ends += 1
        wrong = [] if code == 0 else [f"ended with {code}: {said[-300:]}"]
        wrong += [f"left {path}" for path in litter(found)]
        if not self.subject.timed and shown(found) != shown(self.answers[0]):
            differing = {path for path, data in shown(found).items() if self.answers[0].get(path) != data}
            wrong.append(f"other bytes: {sorted(differing ^ (shown(found).keys() ^ shown(self.answers[0]).keys()))}")
        points = sum("points/" in path for path in before)
        if points and f"{points:,} there already" not in said:
            wrong.append(f"{points} points were there: {said[-200:]}")
        self.found.wrong += [f"{name}, at the end: {line}" for line in wrong]


def _changed(path: Path, written: int) -> bool:
    return not path.exists() or path.stat().st_mtime_ns != written


def kill_many(work: Path, kills: int, seed: int, names: list[str], chain: int = 3) -> Iterator[Found]:
    """At least so many kills, shared out evenly over the commands; tells after every chain.

    Every third turn of all commands is by the clock, the others at their events.
    """
    found, inputs, random = Found(), make_inputs(work / "inputs"), np.random.default_rng(seed)
    victims = [Victim(SUBJECTS[name], work, inputs, found) for name in names]
    nurseries = {torch: Nursery(NEEDED + TORCH * torch) for torch in {victim.subject.torch for victim in victims}}
    try:
        for victim in victims:
            victim.learn(nurseries[victim.subject.torch])
        turn = 0
        while found.kills < kills:
            victim = victims[turn % len(victims)]
            by_event = turn // len(victims) % 3 != 1
            victim.chain(nurseries[victim.subject.torch], random, min(chain, kills - found.kills), by_event)
            turn += 1
            yield found
    finally:
        for nursery in nurseries.values():
            nursery.close()
