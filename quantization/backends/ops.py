"""The seam between layers and arithmetic: a packed weight and the three operators that handle it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def always_ready() -> None:
    """Say that a backend needs nothing of this machine."""


@dataclass(frozen=True)
class PackedOps:
    """What a weighted layer needs of a backend.

    `prepack(weight, bias, *geometry)` gives the packed weight, `unpack(packed)` gives `(weight, bias)` back,
    `run(x, packed, ...)` is the layer itself; TorchScript must be able to compile calls of these three.
    `ready()` raises if this machine cannot run them; it is called before packing, and never from TorchScript.
    """

    prepack: Callable[..., Any]
    unpack: Callable[..., Any]
    run: Callable[..., Any]
    ready: Callable[[], None] = always_ready
