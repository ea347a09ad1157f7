"""The ways to compute what a compiled kernel computes: each level of CPU that this machine has, and none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from eagerquant_native import kernel, levels
from observers import moving_average, reductions, rounding, straight
from quantization.backends import rescaling

LEVELS = [level for level in levels() if kernel("round_tensor", level)]
WAYS = [*LEVELS, "torch"]
ways = pytest.mark.parametrize("way", WAYS)


def _chosen(way: str) -> Callable[[str], Any]:
    # A kernel that has no such level keeps its best one.
    return lambda name: None if way == "torch" else kernel(name, way) or kernel(name)


@contextmanager
def going(way: str) -> Iterator[None]:
    """Let the fake quantizers compute in that way."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (rounding, straight, moving_average, reductions, rescaling):
            patch.setattr(module, "kernel", _chosen(way))
        yield
