"""The smallest and largest value, at every level of CPU, against torch."""

from __future__ import annotations

import pytest
import torch

from eagerquant_native import kernel, levels

LEVELS_OF_RANGE = [level for level in levels() if kernel("range", level)]


@pytest.mark.parametrize("level", LEVELS_OF_RANGE)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 200_003])
def test_range_is_aminmax(level: str, n: int) -> None:
    x, out = torch.randn(n), torch.empty(2)
    kernel("range", level)(x.data_ptr(), n, out.data_ptr())
    assert out.tolist() == [x.min().item(), x.max().item()]


@pytest.mark.parametrize("level", LEVELS_OF_RANGE)
@pytest.mark.parametrize("at", [0, 70, 199])
def test_range_of_nan_is_nan(level: str, at: int) -> None:
    x, out = torch.randn(200), torch.empty(2)
    x[at] = float("nan")
    kernel("range", level)(x.data_ptr(), 200, out.data_ptr())
    assert bool(out.isnan().all())
