"""Time several functions turn by turn, so that what the machine does meanwhile meets all of them alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

CHUNK = 0.012  # seconds that a contender runs at a stretch
WARM_UP = 0.003  # seconds of unmeasured calls before it, at least one call
SLOW = 0.3  # seconds of a call that is its own warm-up
# Idle threads of OpenMP and ONNX Runtime spin for about a millisecond after their work; the next contender
# would share the cores with them.
SETTLE = 0.004


class Runner(Protocol):
    """Something that can be called once for its result, and timed."""

    def result(self) -> Any:
        """What one call gives."""
        ...

    def chunk(self) -> float:
        """Seconds per call, over one chunk of calls."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass
class Local:
    """A function of this process, and the engine it wants selected.

    `outcome` gives the result to be checked, where that is not what `run` returns.
    """

    run: Callable[[], Any]
    engine: str | None = None
    outcome: Callable[[], Any] | None = None
    calls: int = field(default=0, init=False)
    warm_up: int = field(default=0, init=False)

    def result(self) -> Any:
        """What one call gives."""
        self._select()
        with torch.no_grad():
            return (self.outcome or self.run)()

    def chunk(self) -> float:
        """Seconds per call, over a chunk whose length is chosen the first time."""
        self._select()
        with torch.no_grad():
            if not self.calls:
                self._choose_length()
            self._loop(self.warm_up)
            return self._loop(self.calls) / self.calls

    def close(self) -> None:
        """Let go of the function and the model it holds."""
        self.run, self.outcome = _closed, None

    def _select(self) -> None:
        if self.engine is not None:
            torch.backends.quantized.engine = self.engine

    def _choose_length(self) -> None:
        once = self._loop(1)
        if once < SLOW:
            once = min(once, self._loop(1))  # the first call was for the caches
        self.calls = max(1, round(CHUNK / once))
        self.warm_up = 0 if once > SLOW else max(1, round(WARM_UP / once))

    def _loop(self, calls: int) -> float:
        run = self.run
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start


def _closed() -> None:
    raise RuntimeError("this runner was closed")


def interleave(runners: Mapping[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each runner in each round; every round has an order of its own."""
    order, shuffle = list(runners), random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runners}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                time.sleep(SETTLE)
                samples[name].append(runners[name].chunk())
            gc.collect()
    finally:
        gc.enable()
    return samples
