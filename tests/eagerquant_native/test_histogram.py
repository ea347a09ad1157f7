"""Counting, moving counts and the search, at every level of CPU, bit for bit against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from eagerquant_native import kernel, levels
from observers.histogram_search import quantization_errors

LEVELS_OF_COUNTING = [level for level in levels() if kernel("histogram", level)]
at_every_level = pytest.mark.parametrize("level", LEVELS_OF_COUNTING)
SAME, WIDER, NOT_COUNTED = 0, 1, 2
SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16", torch.float16: "_half"}
VALUES = {
    "normal": lambda n: torch.randn(n),
    "uniform": lambda n: torch.rand(n),
    "relu": lambda n: torch.randn(n).relu(),
    "tail": lambda n: torch.randn(n) ** 9,
    "tiny": lambda n: torch.randn(n) * 1e-30,
    "subnormal": lambda n: torch.randn(n) * 1e-40,
    "huge": lambda n: torch.randn(n) * 1e20,
    "integers": lambda n: torch.randint(-3, 9, (n,)).float(),
    "far from zero": lambda n: torch.rand(n) + 1e6,
    "on the edges": lambda n: torch.randint(0, 65, (n,)) / 64,
}


def counted(x: torch.Tensor, low: float, high: float, bins: int, level: str):
    limits, counts, found = torch.tensor([low, high]), torch.full((bins,), -1.0), torch.empty(2)
    run = kernel("histogram" + SUFFIXES[x.dtype], level)
    pointers = [tensor.data_ptr() for tensor in (limits[0], limits[1], counts, found)]
    return run(x.data_ptr(), x.numel(), bins, *pointers), counts, found.tolist()


@at_every_level
@pytest.mark.parametrize("n", [1, 63, 64, 65, 5000, 200_003])
@pytest.mark.parametrize("name", VALUES)
def test_counts_are_those_of_histc(level, n, name):
    for dtype in SUFFIXES:
        x = (
            VALUES[name](n).to(dtype).clamp(-6e4, 6e4)
            if dtype == torch.float16
            else VALUES[name](n).to(dtype)
        )
        ends = x.min().item(), x.max().item()
        for bins in (2048, 7):
            for before in ((math.inf, -math.inf), (-0.5, 0.5), (-1e5, 1e5), ends):
                outcome, counts, found = counted(x, *before, bins, level)
                low, high = (
                    f(pair) for f, pair in zip((min, max), zip(before, ends, strict=True), strict=True)
                )
                assert found == [low, high]
                if low == high:
                    assert outcome == NOT_COUNTED
                    continue
                assert outcome == (SAME if (low, high) == before else WIDER)
                assert torch.equal(counts, torch.histc(x.float(), bins, min=low, max=high))


@at_every_level
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2100, 99_999])
def test_what_is_not_finite_is_not_counted(level, bad, at):
    x = torch.randn(100_000)
    x[at] = bad
    assert counted(x, math.inf, -math.inf, 16, level)[0] == NOT_COUNTED
    assert counted(x, -100.0, 100.0, 16, level)[0] == NOT_COUNTED


@at_every_level
@pytest.mark.parametrize("limits", [(-3e38, 3e38), (-1e36, 1e36), (math.nan, 1.0), (-math.inf, math.inf)])
def test_a_range_that_overflows_is_left_to_torch(level, limits):
    assert counted(torch.randn(100), *limits, 2048, level)[0] == NOT_COUNTED


@at_every_level
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_moved_counts_are_those_of_a_binary_search_per_part(level, data):
    bins, parts = data.draw(st.sampled_from([(8, 4), (2048, 16), (5, 1)]))
    width = data.draw(st.sampled_from([1.0, 1e-43, 1e-38, 1e-7, 1e30]))
    low = width * data.draw(st.floats(-3, 3))
    high = low + width * data.draw(st.floats(0, 2))
    new_low, new_high = low - width * data.draw(st.floats(0, 9)), high + width * data.draw(st.floats(0, 9))
    counts = torch.randint(0, 1000, (bins,)).float()
    middles = torch.linspace(low, high, bins * parts + 1)[:-1] + (high - low) / (bins * parts) / 2
    edges = torch.linspace(new_low, new_high, bins + 1)
    moved = torch.zeros(bins)
    pointers = [tensor.data_ptr() for tensor in (middles, edges, moved)]
    ascend = bool((edges[1:] >= edges[:-1]).all())
    assert kernel("upscale", level)(counts.data_ptr(), bins, parts, *pointers) == ascend
    where = torch.clamp(torch.bucketize(middles, edges, right=True) - 1, 0, bins - 1)
    expected = torch.bincount(where, weights=counts.repeat_interleave(parts) / parts, minlength=bins)
    assert torch.equal(moved, expected if ascend else torch.zeros(bins))


@at_every_level
@pytest.mark.parametrize("levels_to_keep", [4, 16, 256, 2**16])
@pytest.mark.parametrize("bins", [2048, 100])
@pytest.mark.parametrize("name", VALUES)
def test_errors_of_the_ranges_on_the_path_are_those_of_torch(level, levels_to_keep, bins, name):
    x = VALUES[name](3000)
    width = (x.max().item() - x.min().item()) / bins
    histogram = torch.histc(x, bins)
    cumulative, density = histogram.cumsum(0), histogram / width
    state = torch.tensor([0.0, bins - 1.0, 0.0, 1.0], dtype=torch.float64)
    ranges, errors = torch.empty(8, 2, dtype=torch.float64), torch.empty(8, bins)
    seen = 0
    for _ in range(5):
        found = kernel("next_ranges", level)(
            cumulative.data_ptr(), float(histogram.sum()), density.data_ptr(), bins, width, levels_to_keep,
            1e-4, state.data_ptr(), 8, ranges.data_ptr(), errors.data_ptr(),
        )  # fmt: skip
        starts, ends = ranges[:found].long().T.tolist()
        expected = quantization_errors(histogram, width, starts, ends, levels_to_keep) if found else []
        assert torch.allclose(
            errors[:found].sum(dim=1), torch.tensor(expected), rtol=0, atol=0, equal_nan=True
        )
        seen += found
    assert seen > 0
    assert state[1] - state[0] < bins - 1
