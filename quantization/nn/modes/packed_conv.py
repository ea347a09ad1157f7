"""Convolutions keep their packed weight as an attribute, and weight and bias directly in the state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _ntuple
from typing_extensions import Self

from quantization.backends.ops import PackedOps
from quantization.backends.torch_quantized import pad, transposed_kernel_is_right
from quantization.errors import QuantizationError, notify
from quantization.nn.families.conv import check_conv, lower_padding
from quantization.nn.families.family import Geometry
from quantization.nn.modes.state import (
    explain_other_stage,
    load_output_qparams,
    packing,
    plain_weight,
    same_shape,
    save_output_qparams,
    take,
)
from quantization.nn.modes.weighted import WeightedQuantizedModule
from quantization.nn.packaging import ExternalCode

Sizes = int | Sequence[int]
_PADDING_ARGUMENTS = ("padding", "padding_mode", "kernel_size", "dilation", "stride")

# What torch.ao's pickled convolutions hold, in their order; files of ours hold the whole `__dict__`.
_PICKLED_BY_TORCH_AO = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
)


class PackedConv(ExternalCode, WeightedQuantizedModule):
    """Storage of a convolution: `_packed_params`, the geometry, an output scale and zero point.

    State dict (version 1): `weight`, `bias` (or None), `scale`, `zero_point`.
    """

    if TYPE_CHECKING:  # TorchScript would try to resolve annotations of instance attributes
        in_channels: int
        out_channels: int
        groups: int
        transposed: bool
        kernel_size: tuple[int, ...]

    @classmethod
    def _bind(cls, ops: PackedOps) -> None:
        super()._bind(ops)
        transposed = "output_padding" in cls.family.fields
        cls.set_weight_bias = (_transposed_set_weight_bias if transposed else _set_weight_bias)(ops)
        cls._weight_bias = _weight_bias(ops)

    def _fill(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        output_padding: Sizes = 0,
        **geometry: Any,
    ) -> None:
        """Set the geometry, with one number per dimension, then pack; no weight stands for zeros."""
        family = type(self).family
        per_dim = _ntuple(family.rank)
        for name in ("kernel_size", "stride", "dilation"):
            geometry[name] = tuple(per_dim(geometry[name]))
        self.transposed = "output_padding" in family.fields
        check_conv(geometry, self.transposed)
        padding = lower_padding(**{name: geometry[name] for name in _PADDING_ARGUMENTS})
        for name in family.fields:
            if name != "output_padding":
                setattr(self, name, geometry[name])
        self.padding = padding.numbers
        self.output_padding = tuple(per_dim(output_padding))
        self._packed_padding = padding.packed
        self._pad_amounts = list(padding.amounts)
        self._pad_mode = padding.mode
        self.scale = 1.0
        self.zero_point = 0
        if weight is None:
            weight = plain_weight(family.weight_shape(geometry), torch.qint8)
        with packing(self._get_name()):
            self.set_weight_bias(weight, bias)

    @classmethod
    def _quantized(cls, weight: Tensor, bias: Tensor | None, observer: nn.Module, geometry: Geometry) -> Self:
        module = super()._quantized(weight, bias, observer, geometry)
        if module.transposed:
            module._warn_of_wrong_kernel()
        return module

    def _warn_of_wrong_kernel(self) -> None:
        channels = self.in_channels, self.out_channels
        if not transposed_kernel_is_right(*channels, self.groups, type(self).family.rank):
            engine = torch.backends.quantized.engine
            notify(
                f"torch's kernel of engine '{engine}' computes {self._get_name()} from {channels[0]} to "
                f"{channels[1]} channels wrong: set torch.backends.quantized.engine = 'fbgemm' before "
                "convert, or keep the layer float by setting its qconfig to None",
                strict=False,
            )

    def _batched(self, input: Tensor) -> Tensor:
        """Add the batch dimension an unbatched input lacks, and pad what the kernel does not pad itself."""
        rank = len(self.kernel_size)
        x = input
        if input.dim() == rank + 1:
            x = input.unsqueeze(0)
        elif input.dim() != rank + 2:
            raise QuantizationError(
                "Input shape must be `(N, C, L)`, `(N, C, H, W)` or `(N, C, D, H, W)` for 1, 2 and 3 "
                f"dimensions, N optional; this convolution has {rank}, but the input has shape {input.shape}"
            )
        if self._pad_mode != "none":
            x = pad(x, self._pad_amounts, self._pad_mode)
        return x

    def _bias_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return torch.float32, (self.out_channels,)

    def extra_repr(self) -> str:
        """Channels, kernel, stride, output parameters, and whatever differs from its default."""
        rank = len(self.kernel_size)
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        parts.append(f"scale={self.scale}, zero_point={self.zero_point}")
        usual = {"padding": (0,) * rank, "dilation": (1,) * rank, "output_padding": (0,) * rank, "groups": 1}
        parts += [
            f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value
        ]
        if self.bias() is None:
            parts.append("bias=False")
        return ", ".join(parts)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"], destination[prefix + "bias"] = self._weight_bias()
        save_output_qparams(self, destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        explain_other_stage(self, ("scale",), state_dict, prefix, error_msgs)
        absent = len(missing_keys)
        weight = take(state_dict, prefix + "weight", missing_keys)
        bias = take(state_dict, prefix + "bias", missing_keys)
        load_output_qparams(self, state_dict, prefix, missing_keys)
        expected = self._weight_facts()[1]
        if len(missing_keys) == absent and same_shape(prefix + "weight", weight.shape, expected, error_msgs):
            self.set_weight_bias(weight, bias)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __setstate__(self, state: Any) -> None:
        """Take a pickled `__dict__`, or the 15 values of a convolution pickled by torch.ao."""
        if not isinstance(state, tuple):
            super().__setstate__(state)
            return
        nn.Module.__init__(self)
        geometry = dict(zip(_PICKLED_BY_TORCH_AO, state, strict=False))
        weight, bias, scale, zero_point, training = state[len(geometry) :]
        del geometry["transposed"]
        self._fill(weight, bias, **geometry)
        self.scale, self.zero_point, self.training = scale, zero_point, training


def _set_weight_bias(ops: PackedOps) -> Any:
    prepack, ready = ops.prepack, ops.ready

    def set_weight_bias(self: Any, w: Tensor, b: Tensor | None) -> None:
        if not torch.jit.is_scripting():
            ready()
        self._packed_params = prepack(w, b, self.stride, self._packed_padding, self.dilation, self.groups)

    return torch.jit.export(set_weight_bias)


def _transposed_set_weight_bias(ops: PackedOps) -> Any:
    prepack, ready = ops.prepack, ops.ready

    def set_weight_bias(self: Any, w: Tensor, b: Tensor | None) -> None:
        if not torch.jit.is_scripting():
            ready()
        self._packed_params = prepack(
            w, b, self.stride, self._packed_padding, self.output_padding, self.dilation, self.groups
        )

    return torch.jit.export(set_weight_bias)


def _weight_bias(ops: PackedOps) -> Any:
    unpack = ops.unpack

    def _weight_bias(self: Any) -> tuple[Tensor, Tensor | None]:
        return unpack(self._packed_params)

    return torch.jit.export(_weight_bias)
