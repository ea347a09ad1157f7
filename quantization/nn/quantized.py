"""Statically quantized layers: the names of `torch.ao.nn.quantized` and `torch.ao.nn.intrinsic.quantized`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.backends import torch_quantized
from quantization.backends.native_linear import RELU
from quantization.nn import fused, qat, quantizable
from quantization.nn.activations import (
    ELU as ELU,
    Dropout as Dropout,
    Hardswish as Hardswish,
    LeakyReLU as LeakyReLU,
    PReLU as PReLU,
    ReLU6 as ReLU6,
    Sigmoid as Sigmoid,
    Softmax as Softmax,
)
from quantization.nn.embedding import (
    Embedding as Embedding,
    EmbeddingBag as EmbeddingBag,
    EmbeddingPackedParams as EmbeddingPackedParams,
)
from quantization.nn.families import conv, linear
from quantization.nn.functional_modules import (
    FloatFunctional as FloatFunctional,
    FXFloatFunctional as FXFloatFunctional,
    QFunctional as QFunctional,
)
from quantization.nn.modes.packed_conv import PackedConv, Sizes
from quantization.nn.modes.packed_linear import PackedLinear, PackedLinearParams
from quantization.nn.modes.static import (
    Static,
    StaticConv,
    conv_add_forward,
    conv_forward,
    linear_forward,
    linear_leaky_relu_forward,
)
from quantization.nn.modes.weighted import WeightedQuantizedModule as WeightedQuantizedModule
from quantization.nn.norms import (
    BatchNorm2d as BatchNorm2d,
    BatchNorm3d as BatchNorm3d,
    BNReLU2d as BNReLU2d,
    BNReLU3d as BNReLU3d,
    GroupNorm as GroupNorm,
    InstanceNorm1d as InstanceNorm1d,
    InstanceNorm2d as InstanceNorm2d,
    InstanceNorm3d as InstanceNorm3d,
    LayerNorm as LayerNorm,
)
from quantization.nn.quantizable.converted import Converted, ConvertedAttention
from quantization.nn.stub_modules import DeQuantize as DeQuantize, Quantize as Quantize
from quantization.stubs import DeQuantStub, QuantStub


class LinearPackedParams(
    PackedLinearParams, int8=torch_quantized.LINEAR, fp16=torch_quantized.LINEAR_DYNAMIC_FP16
):
    """The packed weight and bias of a linear layer."""


class Linear(
    Static,
    PackedLinear,
    family=linear.LINEAR,
    ops=torch_quantized.LINEAR,
    params=LinearPackedParams,
    forward=linear_forward,
):
    """Quantized `nn.Linear`: x of shape (*, in_features), quint8, to (*, out_features).

    >>> x = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8)
    >>> Linear(3, 4)(x).shape
    torch.Size([2, 4])
    """

    _native_flags = 0

    def extra_repr(self) -> str:
        """Features, output parameters and the weight's qscheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}, "
            f"zero_point={self.zero_point}, qscheme={self.weight().qscheme()}"
        )


class LinearReLU(Linear, ops=torch_quantized.LINEAR_RELU, source=fused.LinearReLU):
    """Quantized Linear and ReLU in one operator."""

    _native_flags = RELU

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)


class LinearTanh(Linear, ops=torch_quantized.LINEAR_TANH, source=fused.LinearTanh):
    """Quantized Linear and Tanh in one operator; only the onednn engine runs it."""

    _native_flags = None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)


class LinearLeakyReLU(
    Linear,
    ops=torch_quantized.LINEAR_LEAKY_RELU,
    source=fused.LinearLeakyReLU,
    forward=linear_leaky_relu_forward,
):
    """Quantized Linear and LeakyReLU in one operator; only the onednn engine runs it."""

    _native_flags = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        negative_slope: float,
        bias: bool = True,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.negative_slope = negative_slope

    def _fill(
        self, weight: Tensor, bias: Tensor | None, negative_slope: float = 0.01, **geometry: Any
    ) -> None:
        super()._fill(weight, bias, **geometry)
        self.negative_slope = negative_slope

    @classmethod
    def _geometry_of(cls, mod: nn.Module, inner: nn.Module) -> dict[str, Any]:
        slope = mod[1].negative_slope  # pyright: ignore[reportIndexIssue]
        return {**super()._geometry_of(mod, inner), "negative_slope": slope}


class _ConvNd(StaticConv, PackedConv):
    """Base of the quantized convolutions.

    `device` and `dtype` are arguments for torch.ao's sake: a packed weight is int8 and on the CPU.
    """

    _NNIQAT_CONV_BN_MODULE: ClassVar[type[nn.Module] | None] = None
    _NNI_CONV_RELU_MODULE: ClassVar[type[nn.Module] | None] = None
    _NNI_CONV_ADD_MODULE: ClassVar[type[nn.Module] | None] = None
    _NNI_CONV_ADD_RELU_MODULE: ClassVar[type[nn.Module] | None] = None

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
    ) -> None:
        super().__init__()
        self._fill(
            None,
            torch.zeros(out_channels) if bias else None,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )


class Conv1d(_ConvNd, family=conv.CONV1D, ops=torch_quantized.CONV1D, forward=conv_forward):
    """Quantized `nn.Conv1d`: input of shape (N, C, L) or (C, L), quint8.

    >>> x = torch.quantize_per_tensor(torch.ones(1, 3, 8), 0.1, 0, torch.quint8)
    >>> Conv1d(3, 4, 3, padding="same")(x).shape
    torch.Size([1, 4, 8])
    """

    _NNIQAT_CONV_BN_MODULE = qat.ConvBn1d
    _NNI_CONV_RELU_MODULE = fused.ConvReLU1d


class Conv2d(_ConvNd, family=conv.CONV2D, ops=torch_quantized.CONV2D, forward=conv_forward):
    """Quantized `nn.Conv2d`: input of shape (N, C, H, W) or (C, H, W), quint8."""

    _NNIQAT_CONV_BN_MODULE = qat.ConvBn2d
    _NNI_CONV_RELU_MODULE = fused.ConvReLU2d
    _NNI_CONV_ADD_MODULE = fused.ConvAdd2d
    _NNI_CONV_ADD_RELU_MODULE = fused.ConvAddReLU2d


class Conv3d(_ConvNd, family=conv.CONV3D, ops=torch_quantized.CONV3D, forward=conv_forward):
    """Quantized `nn.Conv3d`: input of shape (N, C, D, H, W) or (C, D, H, W), quint8."""

    _NNIQAT_CONV_BN_MODULE = qat.ConvBn3d
    _NNI_CONV_RELU_MODULE = fused.ConvReLU3d


class ConvReLU1d(Conv1d, ops=torch_quantized.CONV1D_RELU, source=fused.ConvReLU1d):
    """Quantized Conv1d and ReLU in one operator."""


class ConvReLU2d(Conv2d, ops=torch_quantized.CONV2D_RELU, source=fused.ConvReLU2d):
    """Quantized Conv2d and ReLU in one operator."""


class ConvReLU3d(Conv3d, ops=torch_quantized.CONV3D_RELU, source=fused.ConvReLU3d):
    """Quantized Conv3d and ReLU in one operator."""


class ConvAdd2d(Conv2d, ops=torch_quantized.CONV2D_ADD, source=fused.ConvAdd2d, forward=conv_add_forward):
    """Quantized Conv2d plus a second input, in one operator; only the onednn engine runs it."""


class ConvAddReLU2d(
    Conv2d, ops=torch_quantized.CONV2D_ADD_RELU, source=fused.ConvAddReLU2d, forward=conv_add_forward
):
    """Quantized Conv2d plus a second input and ReLU, in one operator; only the onednn engine runs it."""


class _ConvTransposeNd(_ConvNd):
    """Base of the quantized transposed convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._fill(
            None,
            torch.zeros(out_channels) if bias else None,
            output_padding,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )


class ConvTranspose1d(
    _ConvTransposeNd,
    family=conv.CONV_TRANSPOSE1D,
    ops=torch_quantized.CONV_TRANSPOSE1D,
    forward=conv_forward,
):
    """Quantized `nn.ConvTranspose1d`: input of shape (N, C, L) or (C, L), quint8."""


class ConvTranspose2d(
    _ConvTransposeNd,
    family=conv.CONV_TRANSPOSE2D,
    ops=torch_quantized.CONV_TRANSPOSE2D,
    forward=conv_forward,
):
    """Quantized `nn.ConvTranspose2d`: input of shape (N, C, H, W) or (C, H, W), quint8."""


class ConvTranspose3d(
    _ConvTransposeNd,
    family=conv.CONV_TRANSPOSE3D,
    ops=torch_quantized.CONV_TRANSPOSE3D,
    forward=conv_forward,
):
    """Quantized `nn.ConvTranspose3d`: input of shape (N, C, D, H, W) or (C, D, H, W), quint8."""


_PARTS: Mapping[type[nn.Module], Any] = {
    nn.Linear: Linear,
    qat.Linear: Linear,
    FloatFunctional: QFunctional,
    QuantStub: Quantize,
    DeQuantStub: DeQuantize,
}


class LSTM(Converted, quantizable.LSTM):
    """Quantized `nn.LSTM`: quint8 to quint8, (time, batch, input_size) or as `batch_first` says.

    Made by `from_observed` of a calibrated `quantizable.LSTM`. A state given beside the input is quantized.
    """

    _FLOAT_MODULE = quantizable.LSTM
    _KIND = "LSTM"
    _PARTS = _PARTS


class MultiheadAttention(ConvertedAttention, quantizable.MultiheadAttention):
    """Quantized `nn.MultiheadAttention`: quint8 query, key and value to quint8 output and weights.

    Made by `from_observed` of a calibrated `quantizable.MultiheadAttention`.
    """

    _FLOAT_MODULE = quantizable.MultiheadAttention
    _KIND = "MHA"
    _PARTS = _PARTS
