"""How often an observer was called, to tell a module that runs twice in one forward pass from others.

The count is a plain attribute of the instance: no buffer, so checkpoints do not know it, and no hook.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_COUNT = "_calls"


def count_call(observer: Any) -> None:
    """Note one more call; whoever runs an observer calls this.

    >>> observer = nn.Module()
    >>> count_call(observer)
    >>> calls_of(observer)
    1
    """
    # Under compilation a number that changes with every call would mean a new compilation with every call.
    if not torch.compiler.is_compiling() and not isinstance(observer, nn.Identity):
        vars(observer)[_COUNT] = calls_of(observer) + 1


def calls_of(observer: Any) -> int:
    """How many calls were counted; 0 for an observer made before there was a count."""
    return vars(observer).get(_COUNT, 0)
