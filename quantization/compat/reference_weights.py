"""torch.ao's private helpers for reference weights, under its names, on this library's functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from observers.dtypes import facts_of, to_underlying_dtype
from quantization.nn.modes.reference import through_codes, to_codes
from quantization.nn.recurrent.sequences import apply_permutation

_quantize_weight = to_codes
_apply_permutation = apply_permutation
_PARTS = ("qscheme", "dtype", "scale", "zero_point", "axis_int")


def _quantize_and_dequantize_weight(
    weight: Tensor, weight_qscheme: Any, weight_dtype: torch.dtype, weight_scale: Tensor,
    weight_zero_point: Tensor, weight_axis_int: int,
) -> Tensor:  # fmt: skip
    """The weight rounded to what its codes can say."""
    bounds = facts_of(weight_dtype).bounds if weight_qscheme is not None else (0, 0)
    codes = (int(bounds[0]), int(bounds[1]))
    return through_codes(
        weight, weight_qscheme, weight_dtype, weight_scale, weight_zero_point, weight_axis_int, codes
    )


def _decomposed(qscheme: Any, axis: int, low: int | None, high: int | None, dtype: torch.dtype) -> Any:
    """The suffix of the operators, and their arguments between the zero point and the storage type."""
    bounds = facts_of(dtype).bounds
    limits = (bounds[0] if low is None else low, bounds[1] if high is None else high)
    if qscheme == torch.per_tensor_affine:
        return "per_tensor", limits
    return "per_channel", (axis, *limits)


def _quantize_weight_decomposed(
    weight: Tensor, weight_qscheme: Any, weight_dtype: torch.dtype, weight_scale: Tensor,
    weight_zero_point: Tensor, weight_axis: int, weight_quant_min: int | None, weight_quant_max: int | None,
) -> Tensor:  # fmt: skip
    """The integer codes, by the operators of `torch.ops.quantized_decomposed`."""
    kind, rest = _decomposed(weight_qscheme, weight_axis, weight_quant_min, weight_quant_max, weight_dtype)
    op = getattr(torch.ops.quantized_decomposed, f"quantize_{kind}")
    return op(weight, weight_scale, weight_zero_point, *rest, to_underlying_dtype(weight_dtype))


def _dequantize_weight_decomposed(
    weight: Tensor, weight_qscheme: Any, weight_dtype: torch.dtype, weight_scale: Tensor,
    weight_zero_point: Tensor, weight_axis: int, weight_quant_min: int | None, weight_quant_max: int | None,
) -> Tensor:  # fmt: skip
    """The values of integer codes, by the operators of `torch.ops.quantized_decomposed`."""
    kind, rest = _decomposed(weight_qscheme, weight_axis, weight_quant_min, weight_quant_max, weight_dtype)
    op = getattr(torch.ops.quantized_decomposed, f"dequantize_{kind}")
    return op(weight, weight_scale, weight_zero_point, *rest, to_underlying_dtype(weight_dtype))


def _quantize_and_dequantize_weight_decomposed(weight: Tensor, weight_qscheme: Any, *rest: Any) -> Tensor:
    """The weight rounded to what its codes can say, by those operators."""
    if weight_qscheme is None:
        return weight
    codes = _quantize_weight_decomposed(weight, weight_qscheme, *rest)
    return _dequantize_weight_decomposed(codes, weight_qscheme, *rest)


def _save_weight_qparams(
    destination: dict[str, Any], prefix: str, weight_qscheme: Any, weight_dtype: torch.dtype,
    weight_scale: Tensor, weight_zero_point: Tensor, weight_axis: Tensor, is_decomposed: bool = False,
    weight_quant_min: int | None = None, weight_quant_max: int | None = None,
) -> None:  # fmt: skip
    """Put the parameters of a weight into a state dict."""
    destination[prefix + "weight_qscheme"] = weight_qscheme
    destination[prefix + "weight_dtype"] = weight_dtype
    if weight_qscheme is None:
        return
    destination[prefix + "weight_scale"] = weight_scale
    destination[prefix + "weight_zero_point"] = weight_zero_point
    if weight_qscheme == torch.per_channel_affine:
        destination[prefix + "weight_axis"] = weight_axis
        if is_decomposed:
            destination[prefix + "weight_quant_min"] = weight_quant_min
            destination[prefix + "weight_quant_max"] = weight_quant_max


def _get_weight_qparam_keys(state_dict: dict[str, Any], prefix: str) -> list[str]:
    """The names of a weight's parameters in a state dict, without the prefix."""
    names = [f"weight_{part}" for part in ("qscheme", "dtype", "scale", "zero_point", "axis")]
    return [name for name in names if prefix + name in state_dict]


def _get_weight_and_quantization_params(module: Any, wn: str) -> tuple[Any, ...]:
    """A weight of a recurrent reference layer, and its five parameters."""
    return (getattr(module, wn), *(getattr(module, f"{wn}_{part}") for part in _PARTS))


def get_quantized_weight(module: Any, wn: str) -> Tensor | None:
    """A weight of a recurrent reference layer as a quantized tensor; None if the layer has it not."""
    return _quantize_weight(*_get_weight_and_quantization_params(module, wn)) if hasattr(module, wn) else None


def _get_quantize_and_dequantized_weight(module: Any, wn: str) -> Tensor | None:
    """A weight of a recurrent reference layer, rounded; None if the layer has it not."""
    if not hasattr(module, wn):
        return None
    return _quantize_and_dequantize_weight(*_get_weight_and_quantization_params(module, wn))
