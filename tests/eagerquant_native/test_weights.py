"""Codes of a float weight, at every level of CPU, against torch."""

from __future__ import annotations

import pytest
import torch

from eagerquant_native import kernel, levels

LEVELS = [level for level in levels() if kernel("quantize_weight", level)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 67), (300, 512)])
def test_codes_are_those_of_torch(level: str, per_row: bool, shape: tuple[int, int]) -> None:
    scale = torch.rand(shape[0] if per_row else 1) * 0.01 + 1e-3
    x = torch.randn(shape)
    x[:, ::2] = torch.randint(-300, 300, x[:, ::2].shape).add(0.5) * scale.reshape(
        -1, 1
    )  # ties, and out of range
    x[0, 0] = 3e38
    codes = torch.empty(shape, dtype=torch.int8)
    inverse = 1.0 / scale
    kernel("quantize_weight", level)(
        x.data_ptr(), *shape, inverse.data_ptr(), per_row, -128, 127, codes.data_ptr()
    )
    if per_row:
        zero_points = torch.zeros(shape[0], dtype=torch.int64)
        expected = torch.quantize_per_channel(x, scale.double(), zero_points, 0, torch.qint8)
    else:
        expected = torch.quantize_per_tensor(x, float(scale), 0, torch.qint8)
    assert torch.equal(codes, expected.int_repr())


@pytest.mark.parametrize("level", LEVELS)
def test_codes_stay_within_bounds(level: str) -> None:
    x, codes, inverse = torch.randn(5, 40) * 100, torch.empty(5, 40, dtype=torch.int8), torch.ones(1)
    kernel("quantize_weight", level)(x.data_ptr(), 5, 40, inverse.data_ptr(), 0, -16, 15, codes.data_ptr())
    assert torch.equal(codes, x.round().clamp(-16, 15).to(torch.int8))
