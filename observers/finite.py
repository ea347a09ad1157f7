"""Keeping NaN and infinity out of the statistics.

One NaN in one batch would otherwise turn a range into NaN for good, silently. Observers use the finite values
only and say once how many they ignored. The check is cheap: it looks at the range, not at the tensor.
"""

from __future__ import annotations

import math
import warnings

import torch

from observers.errors import QuantizationWarning


def is_finite_range(low: torch.Tensor, high: torch.Tensor) -> bool:
    """Whether every bound is finite. False may also mean that a finite range is too wide for its dtype.

    >>> is_finite_range(torch.tensor([-1.0, 0.0]), torch.tensor([2.0, float("inf")]))
    False
    """
    width = high - low
    return math.isfinite(float(width if width.dim() == 0 else width.sum()))


def without_branches(x: torch.Tensor) -> bool:
    """Whether Python may not look at values of `x`: under tracing and compilation, and on the meta device."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or x.is_meta


class IgnoresNonFinite:
    """Mixin of a module that warns once, on its first non-finite input, how many values it ignored."""

    # A class attribute, so that it is absent from instances (and their pickles) until the warning is given.
    _told_of_nonfinite = False

    @torch.jit.unused
    def _tell_of_nonfinite(self, x: torch.Tensor) -> None:
        ignored = x.numel() - int(torch.isfinite(x).sum())
        if self._told_of_nonfinite or ignored == 0:
            return
        self._told_of_nonfinite = True
        warnings.warn(
            f"{type(self).__name__} ignored {ignored} of {x.numel()} values that are NaN or infinite in "
            f"{x.dtype}; its range covers the finite ones (said once per observer). "
            "Check the data, or the layer before it",
            QuantizationWarning,
            stacklevel=2,
        )
