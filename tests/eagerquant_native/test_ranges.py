"""The smallest and largest value, whole and per channel, at every level of CPU, against torch."""

from __future__ import annotations

import pytest
import torch

from eagerquant_native import kernel, levels

LEVELS_OF_RANGE = [level for level in levels() if kernel("range", level)]
SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16", torch.float16: "_half"}
at_every_level = pytest.mark.parametrize("level", LEVELS_OF_RANGE)
of_every_dtype = pytest.mark.parametrize("dtype", SUFFIXES, ids=str)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal, NaN to NaN; the sign of a zero range is nobody's business."""
    return torch.allclose(ours, theirs.float(), rtol=0, atol=0, equal_nan=True)


@at_every_level
@of_every_dtype
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 200_003])
def test_range_is_aminmax(level: str, dtype: torch.dtype, n: int) -> None:
    x, out = torch.randn(n).to(dtype), torch.empty(2)
    kernel("range" + SUFFIXES[dtype], level)(x.data_ptr(), n, out.data_ptr())
    assert out.tolist() == [x.min().item(), x.max().item()]


@at_every_level
@pytest.mark.parametrize("at", [0, 70, 199])
def test_range_of_nan_is_nan(level: str, at: int) -> None:
    x, out = torch.randn(200), torch.empty(2)
    x[at] = float("nan")
    kernel("range", level)(x.data_ptr(), 200, out.data_ptr())
    assert bool(out.isnan().all())


@at_every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_read_right(level: str, dtype: torch.dtype) -> None:
    everything = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    low, high = torch.empty(2**16), torch.empty(2**16)
    run = kernel("ranges" + SUFFIXES[dtype], level)
    run(everything.data_ptr(), 1, 2**16, 1, low.data_ptr(), high.data_ptr())
    assert same(low, everything)
    assert same(high, everything)


@at_every_level
@of_every_dtype
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 5, 7),
        (3, 5, 100),
        (2, 3, 64),
        (9, 3, 1),
        (501, 3, 1),
        (7, 300, 1),
        (6, 70, 9),
        (90, 2, 3),
    ],
    ids=str,
)
def test_ranges_are_amin_and_amax(
    level: str, dtype: torch.dtype, bad: float | None, shape: tuple[int]
) -> None:
    x = torch.randn(shape).to(dtype)
    if bad is not None:
        x[-1, shape[1] // 2, shape[2] // 3] = bad
    low, high = torch.empty(shape[1]), torch.empty(shape[1])
    kernel("ranges" + SUFFIXES[dtype], level)(x.data_ptr(), *shape, low.data_ptr(), high.data_ptr())
    assert same(low, x.amin((0, 2)))
    assert same(high, x.amax((0, 2)))


@at_every_level
def test_ranges_of_a_tensor_large_enough_for_several_threads(level: str) -> None:
    for shape in ((4, 3, 30_000), (1500, 17, 9), (200_000, 2, 1), (1, 2, 200_000)):
        x, low, high = torch.randn(shape), torch.empty(shape[1]), torch.empty(shape[1])
        kernel("ranges", level)(x.data_ptr(), *shape, low.data_ptr(), high.data_ptr())
        assert torch.equal(low, x.amin((0, 2)))
        assert torch.equal(high, x.amax((0, 2)))
