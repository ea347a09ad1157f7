"""The two native steps of a histogram observer, each None where there is no kernel for its tensors.

Their twins in plain torch are `HistogramObserver._counts` and `_upscale_histogram`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from eagerquant_native.library import is_plain, kernel
from observers.reductions import SUFFIX, memory_order


class Counted(NamedTuple):
    """Counts over the range from `low` to `high`, and whether it is wider than the range before."""

    counts: torch.Tensor
    low: float
    high: float
    is_wider: bool


def count_over_both(x: torch.Tensor, bins: int, low: torch.Tensor, high: torch.Tensor) -> Counted | None:
    """Count `x`, which is not empty, in `bins` bins over the smallest range that holds it and low..high.

    The counts are those of `torch.histc`. None if `x` is not finite, or all its values are one.
    """
    if x.dtype not in SUFFIX or not (is_plain(x) and _is_plain_float(low) and _is_plain_float(high)):
        return None
    run = kernel("histogram" + SUFFIX[x.dtype])
    if run is None or memory_order(x) is None:
        return None
    counts, found = torch.empty(bins), torch.empty(2)
    outcome = run(
        x.data_ptr(), x.numel(), bins, low.data_ptr(), high.data_ptr(), counts.data_ptr(), found.data_ptr()
    )
    if outcome == _NOT_COUNTED:
        return None
    low_of_both, high_of_both = found.tolist()
    return Counted(counts, low_of_both, high_of_both, outcome == _WIDER)


# As `Outcome` in histogram.cpp.
_WIDER, _NOT_COUNTED = 1, 2


def moved_to_edges(
    histogram: torch.Tensor, parts: int, middles: torch.Tensor, edges: torch.Tensor
) -> torch.Tensor | None:
    """Split each count into `parts` equal ones at `middles`, and add them up between `edges`."""
    run = kernel("upscale")
    if run is None or not all(_is_plain_float(tensor) for tensor in (histogram, middles, edges)):
        return None
    moved = torch.zeros_like(histogram)
    pointers = [tensor.data_ptr() for tensor in (middles, edges, moved)]
    return moved if run(histogram.data_ptr(), histogram.numel(), parts, *pointers) else None


def _is_plain_float(x: torch.Tensor) -> bool:
    return x.dtype is torch.float32 and is_plain(x) and x.is_contiguous()
