"""torch.ao's private helpers for weights and paddings, under its names, on this library's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from observers.dtypes import facts_of
from quantization.qparams import quantize_weight

_SUPPORTED_PADDING = {"zeros", "reflect"}
_quantize_weight = quantize_weight


def _get_weight_observer(observer: nn.Module) -> nn.Module:
    """The observer inside a fake quantizer, or the observer itself."""
    inner = observer._modules.get("activation_post_process")
    return observer if inner is None else inner


def _needs_weight_clamping(observer: Any, dtype: torch.dtype) -> bool:
    """Whether the observer's codes are fewer than those of the dtype."""
    inner: Any = _get_weight_observer(observer)
    low, high = facts_of(dtype).bounds
    return inner.quant_min > low or inner.quant_max < high


def _clamp_weights(qweight: Tensor, observer: Any, scale: Tensor, zp: Tensor) -> Tensor:
    """Cut the codes of a quantized weight to those of the observer."""
    if not _needs_weight_clamping(observer, qweight.dtype):
        return qweight
    inner: Any = _get_weight_observer(observer)
    per_tensor = qweight.qscheme() == torch.per_tensor_affine
    shape = [1 if axis != (-1 if per_tensor else qweight.q_per_channel_axis()) else -1
             for axis in range(qweight.dim())]  # fmt: skip
    scale, zp = (value.reshape(() if per_tensor else shape) for value in (scale, zp))
    values = qweight.dequantize().clamp((inner.quant_min - zp) * scale, (inner.quant_max - zp) * scale)
    if per_tensor:
        return torch.quantize_per_tensor(values, qweight.q_scale(), qweight.q_zero_point(), qweight.dtype)
    scales, zero_points = qweight.q_per_channel_scales(), qweight.q_per_channel_zero_points()
    axis = qweight.q_per_channel_axis()
    return torch.quantize_per_channel(values, scales, zero_points, axis, qweight.dtype)


def _ntuple_from_first(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """A function that repeats its argument, or the first item of it, `n` times."""

    def parse(x: Any) -> tuple[Any, ...]:
        return ((x[0] if isinstance(x, list | tuple) else x),) * n

    return parse


def _pair_from_first(x: Any) -> tuple[Any, ...]:
    """The argument, or the first item of it, twice."""
    return _ntuple_from_first(2)(x)


def _reverse_repeat_padding(padding: list[int]) -> list[int]:
    """Padding by dimension as `F.pad` takes it: the last dimension first, each number twice."""
    return [amount for amount in reversed(padding) for _ in range(2)]


def _hide_packed_params_repr(module: nn.Module, params: Any) -> str:
    """The representation of a module without its children of the type `params`."""
    lines = [module.extra_repr()] if module.extra_repr() else []
    lines += [
        f"({name}): " + repr(child).replace("\n", "\n  ")
        for name, child in module.named_children()
        if not isinstance(child, params)
    ]
    simple = len(lines) <= 1 and not any(line.startswith("(") for line in lines)
    inside = "".join(lines) if simple else "\n  " + "\n  ".join(lines) + "\n"
    return f"{module._get_name()}({inside})"
