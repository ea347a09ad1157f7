"""Functions on quantized tensors: the names of `torch.ao.nn.quantized.functional`.

Where a function has `scale` and `zero_point` they are the output's; elsewhere the output keeps the input's. A
plain tensor where a quantized one is needed is a `QuantizationError`, and so a ValueError.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._jit_internal import (  # pyright: ignore[reportAttributeAccessIssue]
    BroadcastingList2,  # pyright: ignore[reportAttributeAccessIssue]
    BroadcastingList3,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch.nn.modules.utils import _pair, _single, _triple

from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest, QuantizationError, Unsupported, notify
from quantization.nn.static_cell import expect_quantized

_linear, _linear_prepack = q.LINEAR.run, q.LINEAR.prepack

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "avg_pool2d",
    "avg_pool3d",
    "celu",
    "clamp",
    "conv1d",
    "conv2d",
    "conv3d",
    "elu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "interpolate",
    "leaky_relu",
    "linear",
    "max_pool1d",
    "max_pool2d",
    "threshold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]


def avg_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """Average over windows of `(N, C, H, W)`.

    >>> x = torch.quantize_per_tensor(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 0.5, 0, torch.quint8)
    >>> avg_pool2d(x, 2).dequantize().item()
    3.0
    """
    expect_quantized(input, "quantized.avg_pool2d")
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """Average over windows of `(N, C, D, H, W)`.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 2, 2, 2), 0.5, 0, torch.quint8)
    >>> avg_pool3d(x, 2).shape
    torch.Size([1, 1, 1, 1, 1])
    """
    expect_quantized(input, "quantized.avg_pool3d")
    return F.avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d(input: Tensor, output_size: BroadcastingList2[int]) -> Tensor:
    """Average over as many windows of `(N, C, H, W)` as `output_size` says; None keeps a size.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 4, 6), 0.5, 0, torch.quint8)
    >>> adaptive_avg_pool2d(x, (None, 3)).shape
    torch.Size([1, 1, 4, 3])
    """
    expect_quantized(input, "quantized.functional.adaptive_avg_pool2d")
    return F.adaptive_avg_pool2d(input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: BroadcastingList3[int]) -> Tensor:
    """Average over as many windows of `(N, C, D, H, W)` as `output_size` says; None keeps a size.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 4, 4, 4), 0.5, 0, torch.quint8)
    >>> adaptive_avg_pool3d(x, 2).shape
    torch.Size([1, 1, 2, 2, 2])
    """
    expect_quantized(input, "quantized.functional.adaptive_avg_pool3d")
    return F.adaptive_avg_pool3d(input, output_size)


def _check_conv(input: Tensor, weight: Tensor, padding_mode: str, layout: str) -> None:
    if padding_mode != "zeros":
        raise Unsupported(
            f"Only zero-padding is supported! Got padding_mode {padding_mode!r}: pad with "
            "torch.nn.functional.pad first, and use padding=0"
        )
    if input.dtype != torch.quint8:
        raise Unsupported(f"Only torch.quint8 is supported for activation tensor! Got {input.dtype}")
    if weight.dtype != torch.qint8:
        raise Unsupported(f"Only torch.qint8 is supported for weight tensor! Got {weight.dtype}")
    if input.dim() != layout.count(",") + 1:
        raise QuantizationError(f"Input shape must be `{layout}`! It has {input.dim()} dimensions")


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
    dtype: torch.dtype = torch.quint8,
) -> Tensor:  # fmt: skip
    """Convolve `(N, C, L)`, quint8, with a qint8 weight; the output is quint8 whatever `dtype` says.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 4), 0.5, 0, torch.quint8)
    >>> weight = torch.quantize_per_tensor(torch.ones(1, 1, 2), 0.5, 0, torch.qint8)
    >>> conv1d(x, weight, None).dequantize().tolist()
    [[[2.0, 2.0, 2.0]]]
    """
    _check_conv(input, weight, padding_mode, "(N, C, L)")
    packed = q.conv1d_prepack(weight, bias, _single(stride), _single(padding), _single(dilation), groups)
    return q.conv1d(input, packed, scale, zero_point)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
    dtype: torch.dtype = torch.quint8,
) -> Tensor:  # fmt: skip
    """Convolve `(N, C, H, W)`, quint8, with a qint8 weight; the output is quint8 whatever `dtype` says.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 2, 3), 0.5, 0, torch.quint8)
    >>> weight = torch.quantize_per_tensor(torch.ones(1, 1, 2, 2), 0.5, 0, torch.qint8)
    >>> conv2d(x, weight, None).dequantize().tolist()
    [[[[4.0, 4.0]]]]
    """
    _check_conv(input, weight, padding_mode, "(N, C, H, W)")
    packed = q.conv2d_prepack(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)
    return q.conv2d(input, packed, scale, zero_point)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
    dtype: torch.dtype = torch.quint8,
) -> Tensor:  # fmt: skip
    """Convolve `(N, C, D, H, W)`, quint8, with a qint8 weight; the output is quint8 whatever `dtype` says.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 2, 2, 2), 0.5, 0, torch.quint8)
    >>> weight = torch.quantize_per_tensor(torch.ones(1, 1, 2, 2, 2), 0.5, 0, torch.qint8)
    >>> conv3d(x, weight, None).dequantize().item()
    8.0
    """
    _check_conv(input, weight, padding_mode, "(N, C, D, H, W)")
    packed = q.conv3d_prepack(weight, bias, _triple(stride), _triple(padding), _triple(dilation), groups)
    return q.conv3d(input, packed, scale, zero_point)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float | None = None,
    zero_point: int | None = None,
) -> Tensor:  # fmt: skip
    """`input @ weight.T + bias`, with a qint8 weight; without `scale` or `zero_point` the input's is taken.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 2), 0.5, 0, torch.quint8)
    >>> linear(x, torch.quantize_per_tensor(torch.ones(3, 2), 0.5, 0, torch.qint8)).dequantize().tolist()
    [[2.0, 2.0, 2.0]]
    """
    expect_quantized(input, "quantized.linear")
    expect_quantized(weight, "quantized.linear (its weight)")
    scale = input.q_scale() if scale is None else scale
    zero_point = input.q_zero_point() if zero_point is None else zero_point
    return _linear(input, _linear_prepack(weight, bias), scale, zero_point)


def _no_indices(return_indices: bool) -> None:
    if return_indices:
        raise Unsupported("return_indices is not yet implemented! Pool the dequantized tensor to get indices")


def max_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """Maximum over windows of `(N, C, L)`; a plain tensor is pooled too.

    >>> x = torch.quantize_per_tensor(torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]), 0.5, 0, torch.quint8)
    >>> max_pool1d(x, 2).dequantize().tolist()
    [[[3.0, 2.0]]]
    """
    _no_indices(return_indices)
    return torch.max_pool1d(input, kernel_size, _stride(stride, kernel_size), padding, dilation, ceil_mode)


def max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """Maximum over windows of `(N, C, H, W)`; a plain tensor is pooled too.

    >>> x = torch.quantize_per_tensor(torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]]), 0.5, 0, torch.quint8)
    >>> max_pool2d(x, 2).dequantize().item()
    3.0
    """
    _no_indices(return_indices)
    return torch.max_pool2d(input, kernel_size, _stride(stride, kernel_size), padding, dilation, ceil_mode)


def _stride(stride: Any, kernel_size: Any) -> Any:
    return kernel_size if stride is None else stride


def celu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    """`x` where positive, else `alpha * (exp(x / alpha) - 1)`.

    >>> x = torch.quantize_per_tensor(torch.tensor([2.0]), 0.5, 10, torch.quint8)
    >>> celu(x, 0.25, 10).dequantize().item()
    2.0
    """
    expect_quantized(input, "quantized.celu")
    return q.celu(input, scale, zero_point, alpha)


def leaky_relu(
    input: Tensor, negative_slope: float = 0.01, inplace: bool = False, scale: float | None = None,
    zero_point: int | None = None,
) -> Tensor:  # fmt: skip
    """`x` where positive, else `negative_slope * x`; `scale` and `zero_point` count only if both are given.

    Without them a plain tensor is taken too. Raises `InvalidRequest` for both together with `inplace`.

    >>> x = torch.quantize_per_tensor(torch.tensor([-2.0, 2.0]), 0.5, 10, torch.quint8)
    >>> leaky_relu(x, 0.5).dequantize().tolist()
    [-1.0, 2.0]
    """
    if scale is None or zero_point is None:
        return F.leaky_relu(input, negative_slope, inplace)
    if inplace:
        raise InvalidRequest(
            "Cannot rescale with `inplace`: leave out scale and zero_point, or use inplace=False"
        )
    expect_quantized(input, "quantized.leaky_relu")
    return q.leaky_relu(input, negative_slope, False, scale, zero_point)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Cut at `min_val` and `max_val`.

    >>> x = torch.quantize_per_tensor(torch.tensor([-2.0, 2.0]), 0.5, 10, torch.quint8)
    >>> hardtanh(x).dequantize().tolist()
    [-1.0, 1.0]
    """
    expect_quantized(input, "quantized.hardtanh")
    return F.hardtanh(input, min_val, max_val, inplace)


def hardswish(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """`x * relu6(x + 3) / 6`.

    >>> x = torch.quantize_per_tensor(torch.tensor([3.0]), 0.5, 10, torch.quint8)
    >>> hardswish(x, 0.5, 10).dequantize().item()
    3.0
    """
    expect_quantized(input, "quantized.hardswish")
    return q.hardswish(input, scale, zero_point)


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    """`x` where it exceeds `threshold`, else `value`.

    >>> x = torch.quantize_per_tensor(torch.tensor([0.5, 3.0]), 0.5, 10, torch.quint8)
    >>> globals()["threshold"](x, 1.0, -1.0).dequantize().tolist()
    [-1.0, 3.0]
    """
    expect_quantized(input, "quantized.threshold")
    if threshold is None:
        raise QuantizationError("Input to 'threshold' must be specified! It is the number `threshold`")
    if value is None:
        raise QuantizationError("Input to 'value' must be specified! It is the number `value`")
    return q.threshold(input, threshold, value)


def elu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    """`x` where positive, else `alpha * (exp(x) - 1)`.

    >>> x = torch.quantize_per_tensor(torch.tensor([2.0]), 0.5, 10, torch.quint8)
    >>> elu(x, 0.25, 10).dequantize().item()
    2.0
    """
    expect_quantized(input, "quantized.elu")
    return q.elu(input, scale, zero_point, alpha)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """`relu6(x + 3) / 6`, with scale 1/256; in place, the input's own scale stays.

    >>> x = torch.quantize_per_tensor(torch.tensor([0.0]), 0.5, 10, torch.quint8)
    >>> hardsigmoid(x).dequantize().item()
    0.5
    """
    expect_quantized(input, "quantized.hardsigmoid")
    return F.hardsigmoid(input, inplace)


def clamp(input: Tensor, min_: float, max_: float) -> Tensor:
    """Cut at `min_` and `max_`.

    >>> x = torch.quantize_per_tensor(torch.tensor([-2.0, 2.0]), 0.5, 10, torch.quint8)
    >>> clamp(x, -0.5, 1.0).dequantize().tolist()
    [-0.5, 1.0]
    """
    expect_quantized(input, "quantized.clamp")
    return q.clamp(input, min_, max_)


def interpolate(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:  # fmt: skip
    """Resize `(N, C, H, W)` or `(N, C, D, H, W)`; modes: "nearest", "nearest-exact", in 2-d "bilinear".

    >>> x = torch.quantize_per_tensor(torch.ones(1, 1, 2, 2), 0.5, 10, torch.quint8)
    >>> interpolate(x, scale_factor=2).shape
    torch.Size([1, 1, 4, 4])
    """
    expect_quantized(input, "quantized.interpolate")
    return F.interpolate(input, size, scale_factor, mode, align_corners)


def _warn_upsample(name: str) -> None:
    notify(
        f"nn.quantized.functional.{name} is deprecated. Use nn.quantized.functional.interpolate instead.",
        strict=False,
        stacklevel=4,
    )


def upsample(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:  # fmt: skip
    """Resize; an old name of `interpolate`, which warns."""
    _warn_upsample("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """Resize bilinearly with aligned corners; an old form of `interpolate`, which warns."""
    _warn_upsample("upsample_bilinear")
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """Resize to the nearest values; an old form of `interpolate`, which warns."""
    _warn_upsample("upsample_nearest")
    return interpolate(input, size, scale_factor, mode="nearest")
