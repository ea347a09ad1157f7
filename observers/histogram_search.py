"""Which part of a histogram to keep: the range that quantizes it with the smallest squared error.

Plain functions in TorchScript's subset, used by `HistogramObserver`.
"""

from __future__ import annotations

import torch

from eagerquant_native.library import is_plain, kernel


def first_at_least(ascending: list[float], bound: float, start: int, end: int) -> int:
    """Return the first index in start..end whose value is at least `bound`, or `end` if there is none.

    >>> first_at_least([1.0, 2.0, 4.0, 8.0], 3.0, 0, 3)
    2
    """
    while start < end:
        middle = (start + end) // 2
        if ascending[middle] < bound:
            start = middle + 1
        else:
            end = middle
    return start


def last_at_most(ascending: list[float], bound: float, start: int, end: int) -> int:
    """Return the last index in start..end whose value is at most `bound`, or `start` if there is none.

    >>> last_at_most([1.0, 2.0, 4.0, 8.0], 3.0, 0, 3)
    1
    """
    while start < end:
        middle = (start + end + 1) // 2
        if ascending[middle] > bound:
            end = middle - 1
        else:
            start = middle
    return start


def as_float32(value: float) -> float:
    """Round a Python float to float32's 24 bits (Veltkamp's splitting), for comparison with float32 counts.

    A round trip through a tensor does the same and takes thirty times as long.

    >>> as_float32(0.1) == torch.tensor(0.1).item()
    True
    """
    spread = value * (2.0**29 + 1.0)
    return spread - (spread - value)


def uniform_error(delta_begin: torch.Tensor, delta_end: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    """Return the squared error of mass spread evenly from `delta_begin` to `delta_end` around its value.

    That is density * (delta_end^3 - delta_begin^3) / 3.

    >>> uniform_error(torch.tensor(-0.5), torch.tensor(0.5), torch.tensor(12.0))
    tensor(1.)
    """
    norm = (delta_end * delta_end * delta_end - delta_begin * delta_begin * delta_begin) / 3
    return density * norm


def quantization_errors(
    histogram: torch.Tensor, bin_width: float, starts: list[int], ends: list[int], dst_nbins: int
) -> list[float]:
    """Return the squared error of quantizing `histogram` to `dst_nbins` levels over each range of its bins.

    Range i goes from bin `starts[i]` to bin `ends[i]`, both included. The mass of a source bin is spread
    evenly; the part within a level's width becomes the level's middle, and what lies outside the outermost
    level.

    >>> quantization_errors(torch.tensor([0.0, 12.0, 0.0]), 1.0, [0, 1], [2, 1], 1)
    [1.0, 1.0]
    """
    # TorchScript's zip knows no `strict`.
    bins = [end - start + 1 for start, end in zip(starts, ends)]  # noqa: B905
    widths = [bin_width * count / dst_nbins for count in bins]
    width = torch.tensor(widths, dtype=histogram.dtype, device=histogram.device).unsqueeze(1)
    first = torch.tensor(starts, device=histogram.device).unsqueeze(1)
    density = histogram / bin_width
    source = torch.arange(histogram.numel(), device=histogram.device).unsqueeze(0)
    begin = (source - first) * bin_width
    end = begin + bin_width
    begin_level = torch.clamp(torch.div(begin, width, rounding_mode="floor"), 0, dst_nbins - 1)
    end_level = torch.clamp(torch.div(end, width, rounding_mode="floor"), 0, dst_nbins - 1)
    half = width / 2
    error = uniform_error(begin - (begin_level + 0.5) * width, half, density)
    error = error + (end_level - begin_level - 1) * uniform_error(-half, half, density)
    error = error + uniform_error(-half, end - (end_level * width + half), density)
    # A histogram of a single value has bins of width 0 and no error.
    totals = torch.where(width.squeeze(1) == 0, torch.zeros_like(width.squeeze(1)), error.sum(dim=1))
    found: list[float] = totals.tolist()
    return found


def best_bins(
    histogram: torch.Tensor, bin_width: float, dst_nbins: int, step: float = 1e-5, batch: int = 8
) -> tuple[int, int]:
    """Return the first and the last bin of the range to keep.

    From both ends, bins holding a share `step` of the mass are cut off, each time on the side where that
    removes more bins, until the error grows. The path of ranges does not depend on the errors, so they are
    computed for `batch` ranges at once.

    >>> histogram = torch.zeros(100)
    >>> histogram[20:80] = 1.0
    >>> best_bins(histogram, 1.0, 16)
    (20, 78)
    """
    if bin_width == 0:
        # All values are equal: every range is the same one.
        return 0, histogram.numel() - 1
    if not torch.jit.is_scripting():
        if _is_for_kernel(histogram, dst_nbins):
            return _best_bins(histogram, bin_width, dst_nbins, step, batch)
    cumulative: list[float] = torch.cumsum(histogram, dim=0).tolist()
    total = float(torch.sum(histogram))
    start, end = 0, len(cumulative) - 1
    alpha, beta = 0.0, 1.0
    kept_start, kept_end = start, end
    smallest = float("inf")
    starts: list[int] = []
    ends: list[int] = []
    while alpha < beta:
        left = first_at_least(cumulative, as_float32((alpha + step) * total), start, end)
        right = last_at_most(cumulative, as_float32((beta - step) * total), start, end)
        if left - start > end - right:
            moved, start, alpha = left != start, left, alpha + step
        else:
            moved, end, beta = right != end, right, beta - step
        if moved:
            starts.append(start)
            ends.append(end)
        last = not alpha < beta
        if len(starts) == batch or (last and len(starts) > 0):
            errors = quantization_errors(histogram, bin_width, starts, ends, dst_nbins)
            for i, error in enumerate(errors):
                if error > smallest:
                    return kept_start, kept_end
                smallest, kept_start, kept_end = error, starts[i], ends[i]
            starts, ends = [], []
    return kept_start, kept_end


@torch.jit.unused
def _is_for_kernel(histogram: torch.Tensor, dst_nbins: int) -> bool:
    # Beyond sixteen bits float32 no longer tells the levels apart, and torch rounds its own way.
    plain = histogram.dtype == torch.float32 and histogram.is_contiguous() and is_plain(histogram)
    return plain and dst_nbins <= 2**16 and kernel("next_ranges") is not None


@torch.jit.unused
def _best_bins(
    histogram: torch.Tensor, bin_width: float, dst_nbins: int, step: float, batch: int
) -> tuple[int, int]:
    """The same, with native code walking along the path and computing the errors of its ranges."""
    bins, run = histogram.numel(), kernel("next_ranges")
    if run is None:
        raise ValueError("this CPU has no kernel 'next_ranges'")
    cumulative, density = torch.cumsum(histogram, dim=0), histogram / bin_width
    total = float(torch.sum(histogram))
    state = torch.tensor([0.0, bins - 1.0, 0.0, 1.0], dtype=torch.float64)
    ranges, errors = torch.empty(batch, 2, dtype=torch.float64), torch.empty(batch, bins)
    reads = cumulative.data_ptr(), total, density.data_ptr(), bins, bin_width, dst_nbins, step
    writes = state.data_ptr(), batch, ranges.data_ptr(), errors.data_ptr()
    kept, smallest = (0, bins - 1), float("inf")
    while found := run(*reads, *writes):
        # Summed by torch, whose order of summation decides between ranges that are nearly as good.
        for pair, error in zip(ranges[:found].tolist(), errors[:found].sum(dim=1).tolist(), strict=True):
            if error > smallest:
                return kept
            smallest, kept = error, (int(pair[0]), int(pair[1]))
    return kept
