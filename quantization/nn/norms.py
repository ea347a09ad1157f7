"""Quantized normalisation: float statistics and weights, quantized input and output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest, QuantizationError, notify
from quantization.nn import fused
from quantization.nn.static_cell import BufferCell, calibrated_output, expect_quantized, taken_over

torch.fx.wrap("expect_quantized")
torch.fx.wrap("expect_rank")
torch.fx.wrap("in_float32")


def expect_rank(x: Tensor, rank: int, shape: str) -> None:
    """Refuse an input of the wrong number of dimensions."""
    if x.dim() != rank:
        raise QuantizationError(f"Input shape must be `{shape}`! It has {x.dim()} dimensions")


def in_float32(value: Tensor | None) -> Tensor | None:
    """The only type the kernels read; a model in another, or cast to one after conversion, has others."""
    return None if value is None else value.float()


def _parameter(value: Tensor | None) -> nn.Parameter | None:
    return value if value is None or isinstance(value, nn.Parameter) else nn.Parameter(value)


class LayerNorm(BufferCell, nn.LayerNorm):
    """Quantized `nn.LayerNorm`; weight and bias are the float module's."""

    _FIELDS = ("normalized_shape", "weight", "bias", "eps", "elementwise_affine")

    def __init__(
        self, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, scale: float,
        zero_point: int, eps: float = 1e-5, elementwise_affine: bool = True, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        self._add_qparams(scale, zero_point, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last dimensions, those of `normalized_shape`."""
        expect_quantized(input, "quantized.LayerNorm")
        return q.layer_norm(
            input, self.normalized_shape, in_float32(self.weight), in_float32(self.bias), self.eps,
            self.scale, self.zero_point,
        )  # fmt: skip


class GroupNorm(BufferCell, nn.GroupNorm):
    """Quantized `nn.GroupNorm`; weight and bias are the float module's."""

    _FIELDS = ("num_groups", "num_channels", "weight", "bias", "eps", "affine")

    def __init__(
        self, num_groups: int, num_channels: int, weight: Tensor | None, bias: Tensor | None, scale: float,
        zero_point: int, eps: float = 1e-5, affine: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        self._add_qparams(scale, zero_point, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each group of channels of `(N, C, *)`."""
        expect_quantized(input, "quantized.GroupNorm")
        return q.group_norm(
            input, self.num_groups, in_float32(self.weight), in_float32(self.bias), self.eps, self.scale,
            self.zero_point,
        )  # fmt: skip


class _InstanceNorm(BufferCell):
    """The instance norm of any rank: always the input's own statistics, whatever the float module tracked."""

    _FIELDS = ("num_features", "weight", "bias", "eps", "momentum", "affine")

    def __init__(
        self, num_features: int, weight: Tensor | None, bias: Tensor | None, scale: float, zero_point: int,
        eps: float = 1e-5, momentum: float = 0.1, affine: bool = False, track_running_stats: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        self._add_qparams(scale, zero_point, device, dtype)

    @classmethod
    def _like(cls, mod: nn.Module, scale: float, zero_point: int) -> Any:
        if getattr(mod, "track_running_stats", False):
            notify(
                f"quantized {cls.__name__} normalises with the statistics of its input; the running "
                "statistics of the float module (track_running_stats=True) are dropped",
                strict=False,
            )
        return super()._like(mod, scale, zero_point)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of `(N, C, *)`."""
        expect_quantized(input, "quantized.InstanceNorm")
        return q.instance_norm(
            input, in_float32(self.weight), in_float32(self.bias), self.eps, self.scale, self.zero_point
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """Quantized `nn.InstanceNorm1d`."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Quantized `nn.InstanceNorm2d`."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Quantized `nn.InstanceNorm3d`."""


def _batch_norm_forward(op: Any) -> Any:
    """The forward of one batch norm; its operator is bound here, where TorchScript can see it."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """Normalise the channels, dimension 1, with the running statistics."""
        self._check_input_dim(input)
        expect_quantized(input, "quantized.BatchNorm")
        # float() and int(), because TorchScript takes no tensor of shape [1] for a number.
        return op(
            input, in_float32(self.weight), in_float32(self.bias), self.running_mean.float(),
            self.running_var.float(), self.eps, float(self.scale), int(self.zero_point),
        )  # fmt: skip

    return forward


class _BatchNorm(BufferCell, batchnorm._BatchNorm):
    """Batch norm of any rank, with the running statistics, in training mode too.

    From a calibrated module, scale and zero point have the observer's shape `[1]`; fresh ones are 0-dim.
    """

    _FIELDS = ("num_features", "eps", "momentum")
    _FLOAT_MODULE: ClassVar[type[nn.Module] | None] = None
    _NNI_BN_RELU_MODULE: ClassVar[type[nn.Module] | None] = None

    def __init_subclass__(cls, op: Any = None) -> None:
        super().__init_subclass__()
        if op is not None:
            cls.forward = _batch_norm_forward(op)

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, True, True, device=device, dtype=dtype)
        self._add_qparams(1.0, 0, device, dtype)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """Make the quantized module from a calibrated float one; the second argument changes nothing."""
        qparams = calibrated_output(mod, cls.__name__)
        return cls._from_batch_norm(mod, qparams.scale, qparams.zero_point)

    @classmethod
    def from_reference(
        cls, bn: nn.Module, output_scale: float | Tensor, output_zero_point: int | Tensor
    ) -> Any:
        """Make the quantized module from a float one and given output parameters."""
        return cls._from_batch_norm(bn, torch.as_tensor(output_scale), torch.as_tensor(output_zero_point))

    @classmethod
    def _from_batch_norm(cls, mod: nn.Module, scale: Tensor, zero_point: Tensor) -> Any:
        bn = mod[0] if isinstance(mod, fused.BNReLU2d | fused.BNReLU3d) else mod
        tensors = ("weight", "bias", "running_mean", "running_var")
        arguments = taken_over(bn, (*cls._FIELDS, *tensors), cls.__name__)
        if arguments["running_mean"] is None:
            raise InvalidRequest(
                f"quantized {cls.__name__} needs running statistics, but the float module has "
                "track_running_stats=False; keep it float by setting its qconfig to None"
            )
        mean = arguments["running_mean"]
        new = cls(**{name: arguments.pop(name) for name in cls._FIELDS}, device=mean.device, dtype=mean.dtype)
        for name, value in arguments.items():
            # The kernel insists on weight and bias; without them they are ones and zeros.
            if value is not None:
                setattr(new, name, value)
        new.scale, new.zero_point = scale, zero_point
        return new


class BatchNorm2d(_BatchNorm, op=q.batch_norm2d):
    """Quantized `nn.BatchNorm2d`."""

    _NNI_BN_RELU_MODULE = fused.BNReLU2d

    def _check_input_dim(self, input: Tensor) -> None:
        expect_rank(input, 4, "(N, C, H, W)")


class BatchNorm3d(_BatchNorm, op=q.batch_norm3d):
    """Quantized `nn.BatchNorm3d`."""

    _NNI_BN_RELU_MODULE = fused.BNReLU3d

    def _check_input_dim(self, input: Tensor) -> None:
        expect_rank(input, 5, "(N, C, D, H, W)")


class BNReLU2d(BatchNorm2d, op=q.batch_norm2d_relu):
    """Quantized `BNReLU2d`: batch norm and ReLU in one."""

    _FLOAT_MODULE = fused.BNReLU2d


class BNReLU3d(BatchNorm3d, op=q.batch_norm3d_relu):
    """Quantized `BNReLU3d`: batch norm and ReLU in one."""

    _FLOAT_MODULE = fused.BNReLU3d
