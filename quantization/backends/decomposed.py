"""Quantization as plain arithmetic, in the operators that torch's compiler looks for.

`torch.compile` and reference modules with `is_decomposed` name operators of `torch.ops.quantized_decomposed`,
which torch.ao registers. Where it is gone, `register` does; the arithmetic is

    code = clamp(round(value / scale) + zero_point, quant_min, quant_max)
    value = (code - zero_point) * scale
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from observers.base import determine_qparams

_NAMESPACE = "quantized_decomposed"
_PER_TENSOR = {
    "": "float scale, int zero_point, int quant_min, int quant_max",
    ".tensor": "Tensor scale, Tensor zero_point, int quant_min, int quant_max",
    ".tensor2": "Tensor scale, Tensor zero_point, Tensor quant_min, Tensor quant_max",
}
_OUT = "ScalarType dtype, *, ScalarType? out_dtype=None"


def quantize(
    input: Tensor, scale: Any, zero_point: Any, quant_min: Any, quant_max: Any, dtype: torch.dtype
) -> Tensor:
    """Codes of values; all but `input` and `dtype` may be numbers or tensors that broadcast."""
    codes = torch.round(input * (1.0 / scale)) + zero_point
    return torch.clamp(codes, quant_min, quant_max).to(dtype)


def dequantize(
    input: Tensor, scale: Any, zero_point: Any, quant_min: Any, quant_max: Any, dtype: torch.dtype, *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Values of codes, float32 unless `out_dtype` says otherwise."""
    value = input.to(torch.float32)
    if zero_point is not None:
        value = value - zero_point
    return (value * scale).to(torch.float32 if out_dtype is None else out_dtype)


def _along(input: Tensor, axis: int, values: Tensor | None) -> Tensor | None:
    if values is None:
        return None
    shape = [1] * input.dim()
    shape[axis] = -1
    return values.reshape(shape)


def quantize_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Codes of values, with a scale and zero point for each index along `axis`."""
    scale, zero_point = _along(input, axis, scales), _along(input, axis, zero_points)
    return quantize(input, scale, zero_point, quant_min, quant_max, dtype)


def dequantize_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor | None, axis: int, quant_min: int, quant_max: int,
    dtype: torch.dtype, *, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Values of codes, with a scale and zero point for each index along `axis`."""
    scale, zero_point = _along(input, axis, scales), _along(input, axis, zero_points)
    return dequantize(input, scale, zero_point, quant_min, quant_max, dtype, out_dtype=out_dtype)


def choose_qparams(
    input: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the range of `input`."""
    low, high = torch.aminmax(input)
    floor = torch.tensor([eps], device=input.device)
    return determine_qparams(low, high, quant_min, quant_max, dtype, floor, has_customized_qrange=False)


def _operators() -> dict[str, tuple[str, Any]]:
    """Name with overload -> arguments and result, and what computes it."""
    found: dict[str, tuple[str, Any]] = {
        "quantize_per_channel": (
            "(Tensor input, Tensor scales, Tensor zero_points, int axis, int quant_min, int quant_max, "
            "ScalarType dtype) -> Tensor",
            quantize_per_channel,
        ),
        "dequantize_per_channel": (
            "(Tensor input, Tensor scales, Tensor? zero_points, int axis, int quant_min, int quant_max, "
            f"{_OUT}) -> Tensor",
            dequantize_per_channel,
        ),
        "choose_qparams.tensor": (
            "(Tensor input, int quant_min, int quant_max, float eps, ScalarType dtype) -> (Tensor, Tensor)",
            choose_qparams,
        ),
        "convert_element_type.no_fuse": ("(Tensor input, ScalarType dtype) -> Tensor", Tensor.to),
    }
    for overload, arguments in _PER_TENSOR.items():
        found["quantize_per_tensor" + overload] = (
            f"(Tensor input, {arguments}, ScalarType dtype) -> Tensor",
            quantize,
        )
        found["dequantize_per_tensor" + overload] = (
            f"(Tensor input, {arguments}, {_OUT}) -> Tensor",
            dequantize,
        )
    return found


_held: list[Library] = []


def register() -> None:
    """Register the operators that are not there yet; a second call finds nothing to do."""
    missing = {name: operator for name, operator in _operators().items() if not _is_registered(name)}
    if missing:
        library = Library(_NAMESPACE, "FRAGMENT")
        for name, (signature, function) in missing.items():
            library.define(name + signature)
            library.impl(name, function, "CompositeExplicitAutograd")
        _held.append(library)  # dropping it would take the operators away


def _is_registered(name: str) -> bool:
    operator, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, _NAMESPACE), operator, None)
    return packet is not None and (overload or "default") in packet.overloads()
