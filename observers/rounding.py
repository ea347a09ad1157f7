"""Rounding to the integer grid in float, and the gradient of that: what torch's operators give, in less time.

The numbers are those of `torch.fake_quantize_per_tensor_affine` and `torch.fake_quantize_per_channel_affine`,
bit for bit. There are three ways to them: a compiled kernel, which leaves one bit per value for the backward
pass; a few steps of plain torch in place, which keep the input for it; and torch's operator itself, for what
neither takes: other devices, float64, zero points in float, transforms and compilation, values such as NaN.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagerquant_native.library import is_plain, kernel
from observers.reductions import SUFFIX
from observers.straight import MaskGate, Rounded, address, dense, masked, wants_gradient, with_gradient

# Integers up to here are exact in float32 with room for a zero point.
_EXACT = 1 << 21
# From here on torch's per-channel operator, which goes through int64, wraps around.
_LARGEST_64 = 2.0**63
_LARGEST_32 = torch.finfo(torch.float32).max


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)`, in less time.

    >>> fake_quantize(torch.tensor([0.4, 9.0]), torch.tensor([0.5]), torch.tensor([0]).int(), 0, 7)
    tensor([0.5000, 3.5000])
    """
    if _suits(x, scale, zero_point, low, high) and scale.numel() == zero_point.numel() == 1:
        rounded = _by_kernel(x, scale, zero_point, low, high)
        if rounded is not None:
            return with_gradient(x, rounded)
        value = _in_steps(x, scale, zero_point, low, high)
        if value is not None:
            return value
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


def fake_quantize_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Tensor:
    """`torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)`, in less time.

    >>> scale, zero_point = torch.tensor([0.5, 1.0]), torch.tensor([0, 0]).int()
    >>> fake_quantize_channels(torch.tensor([[0.4, 9.0], [0.4, 9.0]]), scale, zero_point, 0, 0, 7)
    tensor([[0.5000, 3.5000],
            [0.0000, 7.0000]])
    """
    channels = x.size(axis) if 0 <= axis < x.dim() else -1
    if _suits(x, scale, zero_point, low, high) and scale.numel() == zero_point.numel() == channels:
        given = (x, scale, zero_point, axis, low, high)
        rounded = _channels_by_kernel(*given) or _channels_in_steps(*given)
        if rounded is not None:
            return with_gradient(x, rounded)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)


def _suits(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> bool:
    return (
        x.dtype in SUFFIX
        and is_plain(x)
        and x.numel() > 0
        and is_plain(scale)
        and is_plain(zero_point)
        and scale.dtype is torch.float32
        and zero_point.dtype is torch.int32
        and -_EXACT < low <= high < _EXACT
    )


# --- by a kernel ---------------------------------------------------------------------------------


def _by_kernel(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Rounded | None:
    run = kernel(f"round_tensor{SUFFIX[x.dtype]}")
    if run is None:
        return None
    source, layout = dense(x)
    gate = MaskGate(layout, 1, x.numel())
    mask = gate.mask() if wants_gradient(x) else None
    value = torch.empty_like(source, requires_grad=False)
    qparams = (scale.data_ptr(), zero_point.data_ptr(), low, high)
    if run(source.data_ptr(), value.data_ptr(), address(mask), x.numel(), *qparams):
        return None
    return masked(value, gate, mask)


def _channels_by_kernel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Rounded | None:
    run = kernel(f"round_channels{SUFFIX[x.dtype]}")
    if run is None or not (scale.is_contiguous() and zero_point.is_contiguous()):
        return None
    source, layout = dense(x)
    outer, channels, inner = runs = layout.runs(x, axis)
    gate = MaskGate(layout, outer, channels) if inner == 1 else MaskGate(layout, outer * channels, inner)
    mask = gate.mask() if wants_gradient(x) else None
    value = torch.empty_like(source, requires_grad=False)
    qparams = (scale.data_ptr(), zero_point.data_ptr(), low, high)
    if run(source.data_ptr(), value.data_ptr(), address(mask), *runs, *qparams):
        return None
    return masked(value, gate, mask)


# --- plain torch -----------------------------------------------------------------------------------


class BandGate(NamedTuple):
    """Clears a gradient where the input rounds to an integer outside [low, high]."""

    inverse: Any
    zero_point: Any
    low: int
    high: int

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        steps = _steps(x.detach(), self.inverse, self.zero_point)
        below, above = self.low - 0.5, self.high + 0.5
        kept = torch.ops.aten.hardtanh_backward(gradient.to(steps.dtype), steps, below, above)
        return kept.to(gradient.dtype)


def _scaled(x: Tensor, inverse: Any) -> Tensor:
    """A new tensor `x * inverse` in float32."""
    return x.mul(inverse) if x.dtype is torch.float32 else x.float().mul_(inverse)


def _steps(x: Tensor, inverse: Any, zero_point: Any) -> Tensor:
    return _scaled(x, inverse).round_().add_(zero_point)


def _in_steps(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor | None:
    """Clip with torch's own operator, whose gradient is the wanted one, and round its result in place."""
    step, zero = scale.item(), int(zero_point.item())
    inverse = scale.reciprocal().item()
    if not (abs(zero) < _EXACT and 0 < step < math.inf > inverse):
        return None
    clipped = torch.nn.functional.hardtanh(x.float(), *_clips(inverse, low - zero, high - zero))
    value = clipped.detach().mul_(inverse).round_().add_(zero).clamp_(low, high)
    if math.isnan(value.sum().item()):
        return None
    value.sub_(zero).mul_(step)
    return clipped.to(x.dtype)


def _clips(inverse: float, low: int, high: int) -> tuple[float, float]:
    """The floats next to the interval of those that round to an integer in [low, high] when scaled."""
    return -_first_above(inverse, -low), _first_above(inverse, high)


def _first_above(inverse: float, high: int) -> float:
    """The smallest float32 whose product with `inverse` rounds to more than `high`, or infinity."""
    start = (high + 0.5) / inverse
    if abs(start) >= _LARGEST_32:
        return math.copysign(math.inf, start)
    found = _float32(start)
    while round(_float32(found * inverse)) > high:
        found = _neighbour(found, -1)
    while round(_float32(found * inverse)) <= high:
        found = _neighbour(found, 1)
    return found


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _neighbour(value: float, way: int) -> float:
    """The next float32 up (1) or down (-1) from `value`, which is not zero."""
    (bits,) = struct.unpack("i", struct.pack("f", value))
    return struct.unpack("f", struct.pack("i", bits + (way if value > 0 else -way)))[0]


@torch.no_grad()
def _channels_in_steps(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Rounded | None:
    inverse = scale.reciprocal()
    usable = (scale > 0) & (inverse < math.inf) & (zero_point >= low) & (zero_point <= high)
    if not bool(usable.all()):
        return None
    shape = [1] * x.dim()
    shape[axis] = -1
    inverse, step, zero = (each.view(shape) for each in (inverse, scale, zero_point))
    scaled = _scaled(x, inverse)
    if not scaled.amax().item() < _LARGEST_64:
        return None
    value = scaled.round_().add_(zero).clamp_(low, high).sub_(zero).mul_(step)
    return Rounded(value.to(x.dtype), BandGate(inverse, zero, low, high), lambda source: (source,))
