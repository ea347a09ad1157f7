"""Linear layers, dynamic and static, on the compiled kernels: the numbers of torch's FBGEMM, in less time.

A pack is one tensor of bytes that holds the int8 weight, its scales and the bias. It contains no addresses,
so it is copied like any tensor. The kernels want a CPU with VNNI and take AMX where there is some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eagerquant_native import kernel
from eagerquant_native.library import is_plain
from quantization.errors import QuantizationError

# How the activations are quantized and what becomes of the result: bits, as in linear.cpp.
REDUCE_RANGE = 1  # seven bits, as torch's dynamic layers have it
PER_ROW = 2  # each row by its own range
RELU = 4

_RUN, _RUN_STATIC = kernel("linear_dynamic"), kernel("linear_static")


def is_available() -> bool:
    """Whether this machine has the kernels."""
    return _RUN is not None


def pack(weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The pack of a qint8 weight of shape (out, in); None where there is no kernel for it.

    It takes symmetric weights: zero points of 0, one scale, or one for each output.
    """
    scales = symmetric_scales(weight) if _RUN is not None else None
    if scales is None:
        return None
    return pack_codes(weight, scales, None if bias is None else bias.detach().float())


def pack_codes(codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The pack of int8 or qint8 codes of shape (out, in); scales of float64, 0-d or one for each output."""
    n, k = codes.shape
    codes, bias = codes.contiguous(), None if bias is None else bias.contiguous()
    per_channel = scales.dim()
    packed = torch.empty(required("pack_size")(n, k, per_channel), dtype=torch.uint8)
    at_bias = None if bias is None else bias.data_ptr()
    required("pack")(codes.data_ptr(), scales.data_ptr(), at_bias, n, k, per_channel, packed.data_ptr())
    return packed


def required(name: str) -> Callable[..., Any]:
    """A kernel of a library that has others."""
    found = kernel(name)
    if found is None:
        raise RuntimeError(f"the compiled library has no kernel {name!r}")
    return found


def symmetric_scales(weight: Tensor) -> Tensor | None:
    """The scales of a qint8 matrix with zero points of 0: float64, 0-d, or one for each row; else None."""
    if weight.dtype != torch.qint8 or weight.dim() != 2 or weight.numel() == 0:
        return None
    if weight.qscheme() == torch.per_tensor_affine:
        return torch.tensor(weight.q_scale(), dtype=torch.float64) if weight.q_zero_point() == 0 else None
    if weight.qscheme() != torch.per_channel_affine or weight.q_per_channel_axis() != 0:
        return None
    if bool(weight.q_per_channel_zero_points().any()):
        return None
    return weight.q_per_channel_scales().double().contiguous()


def shape_of(packed: Tensor) -> tuple[int, int]:
    """The shape of the weight in a pack: (out, in)."""
    n, k = packed[:16].view(torch.int64).tolist()
    return n, k


def unpack(packed: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias in a pack."""
    n, k, per_channel, has_bias = packed[:32].view(torch.int64).tolist()
    codes, bias = torch.empty(n, k, dtype=torch.int8), torch.empty(n)
    scales = torch.empty(n if per_channel else 1, dtype=torch.float64)
    required("unpack")(packed.data_ptr(), codes.data_ptr(), scales.data_ptr(), bias.data_ptr())
    if per_channel:
        zeros = torch.zeros(n, dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)
    else:
        weight = torch._make_per_tensor_quantized_tensor(codes, scales.item(), 0)
    return weight, bias if has_bias else None


# The layer as an operator of torch, for its compiler, which cannot look into the kernel.
_LIBRARY = torch.library.Library("eagerquant", "DEF")
_LIBRARY.define("linear_dynamic(Tensor packed, Tensor x, int flags, int k, int n) -> Tensor")


@torch.library.impl(_LIBRARY, "linear_dynamic", "CPU")
def _operator(packed: Tensor, x: Tensor, flags: int, k: int, n: int) -> Tensor:
    y = run(packed, x, flags, k, n)
    if y is None and x.numel() > 0:
        raise QuantizationError(
            f"the input of a dynamic linear layer, of shape {tuple(x.shape)}, holds NaN or infinity, which "
            "no code can express: check the data, or the layer before it"
        )
    return x.new_empty((*x.shape[:-1], n)) if y is None else y


@torch.library.impl(_LIBRARY, "linear_dynamic", "Meta")
def _shape_of(packed: Tensor, x: Tensor, flags: int, k: int, n: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def run(packed: Tensor, x: Tensor, flags: int, in_features: int, out_features: int) -> Tensor | None:
    """The layer on float x of shape (*, in_features), as float32; None where torch has to do it.

    That is for input of another kind, for tensors without elements, and for NaN and infinity.
    """
    plain = is_plain(x)
    if not plain and not torch.compiler.is_compiling():
        return None
    shape = x.shape
    if not shape or shape[-1] != in_features:
        return None
    if not plain:
        return torch.ops.eagerquant.linear_dynamic(packed, x, flags, in_features, out_features)
    rows = x.numel() // in_features
    if _RUN is None or rows == 0:
        return None
    if x.dtype is not torch.float32:
        if not x.is_floating_point():
            return None
        x = x.to(torch.float32)
    if not x.is_contiguous():
        x = x.contiguous()
    y = torch.empty(rows, out_features, dtype=torch.float32)
    if _RUN(packed.data_ptr(), x.data_ptr(), rows, flags, y.data_ptr()):
        return None
    return y if len(shape) == 2 else y.view(*shape[:-1], out_features)


def run_static(
    packed: Tensor, x: Tensor, scale: float, zero_point: int, flags: int, in_features: int, out_features: int
) -> Tensor | None:
    """The layer on quint8 x of shape (*, in_features), as quint8 of this scale and zero point.

    None where torch has to do it, or to say what is wrong.
    """
    if not is_plain(x) or x.dtype is not torch.quint8 or _RUN_STATIC is None:
        return None
    shape = x.shape
    if not shape or shape[-1] != in_features or x.qscheme() is not torch.per_tensor_affine:
        return None
    rows = x.numel() // in_features
    if rows == 0:
        return None
    if not x.is_contiguous():
        x = x.contiguous()
    y = torch._empty_affine_quantized(
        (*shape[:-1], out_features), scale=scale, zero_point=zero_point, dtype=torch.quint8
    )
    given = x.q_scale(), x.q_zero_point()
    if _RUN_STATIC(
        packed.data_ptr(), x.data_ptr(), rows, *given, scale, zero_point, flags & RELU, y.data_ptr()
    ):
        return None
    return y
