"""The types said to work on quantized tensors as they are do so, on every engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from quantization.workflows.tables import AS_IS_TYPES

ARGUMENTS = {
    "Unflatten": (1, (2, 2)),
    "Threshold": (0.1, 0.2),
    "Upsample": (None, 2),
    "UpsamplingNearest2d": (None, 2),
    "UpsamplingBilinear2d": (None, 2),
    "ConstantPad2d": (1, 0.0),
    **dict.fromkeys(("ReflectionPad1d", "ReflectionPad2d", "ZeroPad2d"), (1,)),
    **dict.fromkeys(("PixelShuffle", "PixelUnshuffle", "ChannelShuffle"), (2,)),
    **{f"{kind}Pool{d}d": (2,) for kind in ("Max", "Avg", "AdaptiveAvg") for d in (1, 2, 3)},
}
STEP = 0.05


@pytest.mark.parametrize("cls", sorted(AS_IS_TYPES, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_quantized_in_quantized_out(engine: str, cls: Callable[..., nn.Module]):
    if engine == "qnnpack" and cls in (nn.MaxPool3d, nn.AdaptiveAvgPool3d):
        pytest.skip("torch's qnnpack has no such kernel, or says that it falls back")
    module = cls(*ARGUMENTS.get(cls.__name__, ())).eval()
    size = (
        2,
        4,
        *[6] * int(cls.__name__[-2] if cls.__name__[-1] == "d" and cls.__name__[-2].isdigit() else 2),
    )
    x = torch.quantize_per_tensor(torch.randn(size), STEP, 64, torch.quint8)
    y = module(x)
    assert y.is_quantized
    assert (y.dequantize() - module(x.dequantize())).abs().max() <= STEP  # input and output rounding
