"""How long a call takes on a device: warmed up, repeated, the inputs taking turns, median and spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.measurement.torch_device import synchronise
from moesim.measurement.torch_door import torch

Call = Callable[[], Any]

LEAST_SAMPLES = 3
MOST_SAMPLES = 200
SHORT = 1e-3
"""Seconds that a sample takes at least, so that the clock's own steps do not show."""
LEAST_CALLS = 16
MOST_CALLS = 2048


@dataclass(frozen=True)
class Timed:
    """Seconds a call: the median of `repeats` samples, and half the way from the 10th to the 90th percentile over it;
    `graph`: the calls were replayed from a CUDA graph, so that the processor's launches do not count."""

    time: float
    spread: float
    repeats: int
    graph: bool = False


class Timer:
    """Times calls on one device for about `seconds` each; on a GPU from a CUDA graph where that can be."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def time(self, calls: Sequence[Call], graph: bool = True) -> Timed:
        """The time of one call; `calls` do the same with different inputs and take turns."""
        for call in calls[:2]:
            call()
        synchronise(self.device)
        guess = self._guess(calls)
        if self.device.type != "cuda":
            return self._sampled(_loop(calls, _inner(guess, 1)), guess)
        if graph:
            rounds = math.ceil(_inner(guess, LEAST_CALLS) / len(calls))
            captured = _captured(calls, rounds)
            if captured is not None:
                return self._sampled((captured.replay, rounds * len(calls)), guess, graph=True)
        return self._sampled(_loop(calls, _inner(guess, 1)), guess)

    def _guess(self, calls: Sequence[Call]) -> float:
        """Seconds a call, from a few."""
        begin, count = time.perf_counter(), 0
        while count < min(len(calls), LEAST_CALLS) and time.perf_counter() - begin < self.seconds / 4:
            calls[count]()
            count += 1
        synchronise(self.device)
        return max((time.perf_counter() - begin) / count, 1e-7)

    def _sampled(self, work: tuple[Call, int], guess: float, graph: bool = False) -> Timed:
        """Samples of `work` (a call that does so many) until the time is over."""
        run, count = work
        take = self._on_gpu if self.device.type == "cuda" else _on_processor
        samples = [take(run)]
        # The first sample tells how many fit; it still warms the caches up and is not kept where there are more.
        fitting = int(self.seconds / max(samples[0], 1e-6, guess * count / 10))
        wanted = min(max(fitting, LEAST_SAMPLES), MOST_SAMPLES)
        samples = [take(run) for _ in range(wanted)]
        low, middle, high = np.percentile(np.asarray(samples) / count, (10, 50, 90)).tolist()
        return Timed(middle, (high - low) / 2 / middle, wanted, graph)

    def _on_gpu(self, run: Call) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


def _on_processor(run: Call) -> float:
    begin = time.perf_counter()
    run()
    return max(time.perf_counter() - begin, 1e-9)


def _inner(guess: float, least: int) -> int:
    """Calls in one sample."""
    return min(max(math.ceil(SHORT / guess), least if guess < SHORT else 1), MOST_CALLS)


def _loop(calls: Sequence[Call], count: int) -> tuple[Call, int]:
    """All calls in turn until each had its turn and at least `count` were made."""
    rounds = math.ceil(count / len(calls))

    def run() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    return run, rounds * len(calls)


def _captured(calls: Sequence[Call], rounds: int) -> Any:
    """A CUDA graph of all calls in turn, each set with its own output; None where they cannot be captured."""
    graph, kept = torch.cuda.CUDAGraph(), [None] * len(calls)
    try:
        # A capture that fails may leave its own stream the current one; the outer block brings this one back.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            for _ in range(rounds):
                for place, call in enumerate(calls):
                    kept[place] = call()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph
