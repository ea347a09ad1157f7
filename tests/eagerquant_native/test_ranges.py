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
@of_every_dtype
@pytest.mark.parametrize("constant", [-1.0, 0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 300_000), (7, 1, 9), (3, 5, 100), (501, 3, 1), (1, 5, 7)], ids=str)
def test_ranges_so_far_are_updated(
    level: str, dtype: torch.dtype, constant: float, shape: tuple[int, int, int]
) -> None:
    run = kernel("update_ranges" + SUFFIXES[dtype], level)
    assert run is not None
    low, high = torch.full((shape[1],), float("inf")), torch.full((shape[1],), float("-inf"))
    expected = None
    for scale in (1, 3, 0.5):
        x = (torch.randn(shape) * scale).to(dtype)
        batch = x.amin((0, 2)).float(), x.amax((0, 2)).float()
        if expected is None:
            expected = batch
        elif constant < 0:
            expected = torch.min(batch[0], expected[0]), torch.max(batch[1], expected[1])
        else:
            expected = tuple(old + constant * (new - old) for old, new in zip(expected, batch, strict=True))
        assert not run(x.data_ptr(), *shape, low.data_ptr(), high.data_ptr(), constant)
        assert torch.equal(low, expected[0]) and torch.equal(high, expected[1])


@at_every_level
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_ranges_so_far_stay_where_a_value_is_not_finite(level: str, bad: float) -> None:
    x, low, high = torch.randn(2, 3, 50), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    x[1, 2, 49] = bad
    kept = low.clone(), high.clone()
    assert kernel("update_ranges", level)(x.data_ptr(), 2, 3, 50, low.data_ptr(), high.data_ptr(), -1.0)
    assert torch.equal(low, kept[0]) and torch.equal(high, kept[1])


@at_every_level
def test_ranges_of_a_tensor_large_enough_for_several_threads(level: str) -> None:
    for shape in ((4, 3, 30_000), (1500, 17, 9), (200_000, 2, 1), (1, 2, 200_000)):
        x, low, high = torch.randn(shape), torch.empty(shape[1]), torch.empty(shape[1])
        kernel("ranges", level)(x.data_ptr(), *shape, low.data_ptr(), high.data_ptr())
        assert torch.equal(low, x.amin((0, 2)))
        assert torch.equal(high, x.amax((0, 2)))
