"""Fake quantizers stay in single precision when the model around them is cast to half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_HALVES = (torch.bfloat16, torch.float16)


class KeepsPrecision:
    """Mixin of a module whose tensors ignore casts to bfloat16 and float16, as `model.to(torch.bfloat16)`.

    The native operators take scales and ranges in float32 only, and a moving average in half precision would
    stop moving. Children, such as the observer, are kept too.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def kept(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if moved.dtype in _HALVES and tensor.dtype not in _HALVES:
                return tensor.to(moved.device)
            return moved

        return super()._apply(kept, recurse)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
