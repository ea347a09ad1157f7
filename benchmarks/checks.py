"""Whether a contender computes what it is timed for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

EXACT = 999.0  # stands for infinity, which JSON has no number for


def as_tensor(result: Any) -> Tensor:
    """The first array of a result, as float64."""
    while isinstance(result, (tuple, list)):
        result = result[0]
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    if result.is_quantized:
        result = result.dequantize()
    return result.detach().double()


def sqnr(expected: Tensor, got: Tensor) -> float:
    """Signal to noise ratio of `got` in decibels; `EXACT` where both are equal, below zero for anything else.

    >>> sqnr(torch.ones(4), torch.ones(4) * 1.1)
    20.0
    """
    if expected.shape != got.shape or not bool(torch.isfinite(got).all()):
        return -EXACT
    noise = float((expected - got).square().sum())
    signal = float(expected.square().sum())
    if noise == 0:
        return EXACT
    return round(10 * math.log10(signal / noise), 1) if signal > 0 else -EXACT
