"""Transposed convolutions: torch's kernels of some engines are wrong for some shapes, and convert says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from quantization import QuantizationWarning, QuantWrapper, convert, default_qconfig, prepare


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("channels", [(4, 4), (4, 6), (6, 4)], ids=str)
def test_a_transposed_convolution_is_right_or_warned_of(
    rank: int, channels: tuple[int, int], engine: str
) -> None:
    model = QuantWrapper(getattr(nn, f"ConvTranspose{rank}d")(*channels, 2))
    model.qconfig = default_qconfig
    prepared = prepare(model.eval())
    x = torch.randn(2, channels[0], *[4] * rank)
    expected = prepared(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = convert(prepared)
    error = (converted(x) - expected).square().mean() / expected.square().mean()
    said = [str(w.message) for w in caught if issubclass(w.category, QuantizationWarning)]
    assert bool(said) == bool(error > 0.05)
    assert all(f"engine '{engine}' computes QuantizedConvTranspose{rank}d from" in text for text in said)
