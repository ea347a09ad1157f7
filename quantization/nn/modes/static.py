"""Static quantization: quantized input, quantized output with a scale and zero point found by calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from quantization.backends import native_linear
from quantization.backends.ops import PackedOps
from quantization.nn.calibrated import calibrated, folded, new_weight_observer, seen
from quantization.nn.modes.weighted import WeightedQuantizedModule
from quantization.nn.static_cell import expect_kernel_dtype, expect_quantized, expect_size
from quantization.qparams import output_qparams


class Static(WeightedQuantizedModule):
    """How a statically quantized layer comes out of a float, QAT or reference module."""

    def _get_name(self) -> str:
        return "Quantized" + type(self).__name__

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize a calibrated float, fused or QAT module; the source stays as it is.

        `use_precomputed_fake_quant` trusts the ranges of a `weight_fake_quant` as they are; only linear
        layers heed it, as in torch.ao.
        """
        cls._check_source(mod)
        found = calibrated(mod, use_precomputed_fake_quant and cls.family.rank == 0)
        geometry = cls._geometry_of(mod, found.geometry)
        module = cls._quantized(found.weight, found.bias, found.weight_observer, geometry)
        module.scale, module.zero_point = found.scale, found.zero_point
        return module

    @classmethod
    def planned(cls, mod: nn.Module, use_precomputed_fake_quant: bool) -> Callable[[], Self] | None:
        """`from_float` in two steps, the checks now and the rest when called; None: only in one."""
        sliver = cls.family.sliver
        if sliver is None:
            return None
        cls._check_source(mod)
        found = calibrated(mod, use_precomputed_fake_quant)
        geometry = cls._geometry_of(mod, found.geometry)
        return cls._planned(found, geometry, sliver, scale=found.scale, zero_point=found.zero_point)

    @classmethod
    def from_reference(cls, ref: nn.Module, output_scale: float, output_zero_point: int) -> Self:
        """Pack the weight of a reference module, or of the one that a fused reference module starts with."""
        module = cls._from_reference(ref)
        module.scale, module.zero_point = float(output_scale), int(output_zero_point)
        return module


class StaticConv(Static):
    """A statically quantized convolution."""

    @classmethod
    def get_qconv(
        cls,
        mod: nn.Module,
        activation_post_process: nn.Module | None,
        weight_post_process: nn.Module | None = None,
    ) -> Self:
        """Quantize a float convolution with these observers; the weight's runs on the weight.

        Without a weight observer a new one comes from `mod.qconfig`.
        """
        observer = weight_post_process or new_weight_observer(mod, mod)
        weight, bias = folded(mod)
        module = cls._quantized(weight, bias, seen(weight, observer), cls._geometry_of(mod, mod))
        if activation_post_process is not None:
            module.scale, module.zero_point = output_qparams(_Observed(activation_post_process))
        return module


class _Observed(nn.Module):
    """Carries an activation observer to where qparams are read from a module."""

    def __init__(self, activation_post_process: nn.Module) -> None:
        super().__init__()
        self.activation_post_process = activation_post_process


def _natively(layer: Any, x: Tensor) -> Tensor | None:
    """The layer by the compiled kernel, None where that cannot be."""
    native = layer._for_kernel()
    if native is None:
        return None
    scale, zero_point = float(layer.scale), int(layer.zero_point)  # which somebody may have set as tensors
    return native_linear.run_static(
        native, x, scale, zero_point, layer._native_flags, layer.in_features, layer.out_features
    )


def linear_forward(ops: PackedOps) -> Any:
    """`forward(x)` of shape (*, in_features); a vector is a batch of one."""
    run = ops.run

    def forward(self: Any, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            done = _natively(self, x)
            if done is not None:
                return done
        expect_quantized(x, self._kind)
        expect_size(x, -1, self.in_features, self._kind)
        if not torch.jit.is_scripting():
            expect_kernel_dtype(x, self._kind)
        rows = x.unsqueeze(0) if x.dim() == 1 else x
        y = run(rows, self._packed_params._packed_params, self.scale, self.zero_point)
        return y.squeeze(0) if x.dim() == 1 else y

    return forward


def linear_leaky_relu_forward(ops: PackedOps) -> Any:
    """`forward(x)` with the module's `negative_slope`."""
    run = ops.run

    def forward(self: Any, x: Tensor) -> Tensor:
        expect_quantized(x, self._kind)
        expect_size(x, -1, self.in_features, self._kind)
        if not torch.jit.is_scripting():
            expect_kernel_dtype(x, self._kind)
        rows = x.unsqueeze(0) if x.dim() == 1 else x
        packed = self._packed_params._packed_params
        y = run(rows, packed, self.scale, self.zero_point, self.negative_slope)
        return y.squeeze(0) if x.dim() == 1 else y

    return forward


def conv_forward(ops: PackedOps) -> Any:
    """`forward(input)` of shape (N, C, ...) or (C, ...)."""
    run = ops.run

    def forward(self: Any, input: Tensor) -> Tensor:
        expect_quantized(input, self._kind)
        x = self._batched(input)
        expect_size(x, 1, self.in_channels, self._kind)
        if not torch.jit.is_scripting():
            expect_kernel_dtype(x, self._kind)
        y = run(x, self._packed_params, self.scale, self.zero_point)
        return y if x.dim() == input.dim() else y.squeeze(0)

    return forward


def conv_add_forward(ops: PackedOps) -> Any:
    """`forward(input, extra_input)`: `extra_input` has the shape of the output."""
    run = ops.run

    def forward(self: Any, input: Tensor, extra_input: Tensor) -> Tensor:
        expect_quantized(input, self._kind)
        x = self._batched(input)
        expect_size(x, 1, self.in_channels, self._kind)
        if not torch.jit.is_scripting():
            expect_kernel_dtype(x, self._kind)
        extra = extra_input if x.dim() == input.dim() else extra_input.unsqueeze(0)
        y = run(x, extra, self._packed_params, self.scale, self.zero_point)
        return y if x.dim() == input.dim() else y.squeeze(0)

    return forward
