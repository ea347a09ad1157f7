"""Dynamically quantized layers: the names of `torch.ao.nn.quantized.dynamic` and its intrinsic twin."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from quantization.backends import torch_quantized
from quantization.backends.native_linear import PER_ROW, REDUCE_RANGE, RELU
from quantization.errors import QuantizationWarning
from quantization.nn import fused, quantized
from quantization.nn.modes.dynamic import (
    Dynamic,
    dynamic_conv_forward,
    dynamic_linear_forward,
    input_mode_of,
)
from quantization.nn.modes.packed_conv import Sizes
from quantization.nn.recurrent import (
    GRU as GRU,
    LSTM as LSTM,
    RNN as RNN,
    GRUCell as GRUCell,
    LSTMCell as LSTMCell,
    RNNCell as RNNCell,
)


class Linear(
    Dynamic,
    quantized.Linear,
    ops=torch_quantized.LINEAR_DYNAMIC,
    forward=dynamic_linear_forward(torch_quantized.LINEAR_DYNAMIC_FP16),
):
    """`nn.Linear` with an int8 or float16 weight: x of shape (*, in_features), any float dtype.

    State dict version 4 halves the range of the input's codes (`reduce_range`); files of older versions keep
    computing as they did, on the full range. A layer that does otherwise, because its qconfig said so, saves
    that as `input_mode`, the sum of 1 (half the range) and 2 (each row has a range of its own).

    >>> Linear(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    _version = 4
    _weight_dtypes = (torch.qint8, torch.float16)

    def _fill(self, weight: Tensor, bias: Tensor | None, **geometry: Any) -> None:
        super()._fill(weight, bias, **geometry)
        self.version = self._version
        self.input_mode = REDUCE_RANGE

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize the weight of a float, fused or QAT module; its qconfig says how input is quantized."""
        module = super().from_float(mod, use_precomputed_fake_quant)
        module.input_mode = input_mode_of(mod)
        return module

    @classmethod
    def planned(cls, mod: nn.Module, use_precomputed_fake_quant: bool) -> Callable[[], Self] | None:
        """`from_float` in two steps, the checks now and the rest when called."""
        return super().planned(mod, use_precomputed_fake_quant, input_mode=input_mode_of(mod))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Layers pickled by torch.ao, and by us before there was a choice, lack it.
        super().__setstate__({"input_mode": _mode_of_version(state.get("version")), **state})

    def extra_repr(self) -> str:
        """Features, weight dtype, and the weight's qscheme if it is quantized."""
        dtype = self._packed_params.dtype
        text = f"in_features={self.in_features}, out_features={self.out_features}, dtype={dtype}"
        text += f", qscheme={self.weight().qscheme()}" if dtype == torch.qint8 else ""
        return text + ("" if self.input_mode == REDUCE_RANGE else f", input={_MODES[self.input_mode]}")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.input_mode != _mode_of_version(self.version):
            destination[prefix + "input_mode"] = torch.tensor(self.input_mode)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        # Without metadata (a plain dict) only the keys tell an old file from one of ours.
        if "version" in local_metadata or prefix + "_packed_params._packed_params" not in state_dict:
            self.version = local_metadata.get("version")
        self.input_mode = int(state_dict.pop(prefix + "input_mode", _mode_of_version(self.version)))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def _mode_of_version(version: int | None) -> int:
    return 0 if version is None or version < 4 else REDUCE_RANGE


_MODES = {
    0: "all eight bits",
    REDUCE_RANGE: "seven bits",
    PER_ROW: "all eight bits per row",
    PER_ROW | REDUCE_RANGE: "seven bits per row",
}


class LinearReLU(
    Linear,
    ops=torch_quantized.LINEAR_RELU_DYNAMIC,
    source=fused.LinearReLU,
    forward=dynamic_linear_forward(torch_quantized.LINEAR_RELU_DYNAMIC_FP16),
):
    """Dynamic Linear and ReLU in one operator."""

    _native_flags = RELU

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)


class _DynamicConv(Dynamic):
    """What dynamic convolutions say of themselves."""

    _NNIQAT_CONV_BN_MODULE = None
    _NNI_CONV_RELU_MODULE = None
    _NNI_CONV_ADD_MODULE = None
    _NNI_CONV_ADD_RELU_MODULE = None

    def _fill(self, *weight_and_bias: Any, **geometry: Any) -> None:
        super()._fill(*weight_and_bias, **geometry)
        warnings.warn(
            f"dynamic {type(self).__name__} has poor numerical accuracy: prefer prepare and convert",
            QuantizationWarning,
            stacklevel=4,
        )


class Conv1d(
    _DynamicConv, quantized.Conv1d, ops=torch_quantized.CONV1D_DYNAMIC, forward=dynamic_conv_forward
):
    """Dynamic `nn.Conv1d`: float input of shape (N, C, L) or (C, L)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduce_range: bool = True,
    ) -> None:
        # `reduce_range` is an argument of `forward`; torch.ao takes it here too, to no effect.
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )


class Conv2d(
    _DynamicConv, quantized.Conv2d, ops=torch_quantized.CONV2D_DYNAMIC, forward=dynamic_conv_forward
):
    """Dynamic `nn.Conv2d`: float input of shape (N, C, H, W) or (C, H, W)."""


class Conv3d(
    _DynamicConv, quantized.Conv3d, ops=torch_quantized.CONV3D_DYNAMIC, forward=dynamic_conv_forward
):
    """Dynamic `nn.Conv3d`: float input of shape (N, C, D, H, W) or (C, D, H, W)."""


class ConvTranspose1d(
    _DynamicConv,
    quantized.ConvTranspose1d,
    ops=torch_quantized.CONV_TRANSPOSE1D_DYNAMIC,
    forward=dynamic_conv_forward,
):
    """Dynamic `nn.ConvTranspose1d`: float input of shape (N, C, L) or (C, L)."""


class ConvTranspose2d(
    _DynamicConv,
    quantized.ConvTranspose2d,
    ops=torch_quantized.CONV_TRANSPOSE2D_DYNAMIC,
    forward=dynamic_conv_forward,
):
    """Dynamic `nn.ConvTranspose2d`: float input of shape (N, C, H, W) or (C, H, W)."""


class ConvTranspose3d(
    _DynamicConv,
    quantized.ConvTranspose3d,
    ops=torch_quantized.CONV_TRANSPOSE3D_DYNAMIC,
    forward=dynamic_conv_forward,
):
    """Dynamic `nn.ConvTranspose3d`: float input of shape (N, C, D, H, W) or (C, D, H, W)."""
