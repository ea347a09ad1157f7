"""The QAT column: a float layer whose weight passes a fake quantizer before every use.

`Qat` is what all cells share; below it one mixin per family holds the constructor and the float operation,
and `nn/qat.py` combines them with torch's layers. A QAT layer *is* a float layer (`nn.Linear`, `nn.Conv2d`),
so optimizers, initializers and checkpoints treat it as one. `from_float` shares the parameters of the float
layer: an optimizer made before `prepare_qat` goes on training the right tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    is_parametrized,
    transfer_parametrizations_and_params,
    type_before_parametrizations,
)

from quantization.engine.weight_hooks import require_plain_weight
from quantization.errors import InvalidRequest
from quantization.markers import FusedModule
from quantization.nn.families.family import Family


class Qat(nn.Module):
    """A float layer with a `weight_fake_quant`, made from a float layer or a fused one by `from_float`.

    `_FLOAT_MODULE` is what `from_float` takes, `_FLOAT_RELU_MODULE` what `to_float` puts behind the layer.
    """

    if TYPE_CHECKING:
        # Brought by the layer class beside this mixin. Annotations at run time would reach TorchScript.
        weight: Any
        bias: Any

    _FLOAT_MODULE: Any = None
    _FLOAT_RELU_MODULE: Any = None
    _family: ClassVar[Family]

    def __init_subclass__(cls, family: Family | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls._family = family

    def _fake_quantize_weight(self, qconfig: Any, device: Any = None, dtype: Any = None) -> None:
        """Store the qconfig and make the weight's fake quantizer, on `device` and in `dtype` where given."""
        if not qconfig:
            raise InvalidRequest(
                f"qconfig must be provided for QAT module {type(self).__name__}: pass qconfig=, for example "
                "get_default_qat_qconfig('x86')"
            )
        if qconfig.weight is None:
            raise InvalidRequest(
                f"the qconfig of QAT module {type(self).__name__} has weight=None: give it a fake quantizer "
                "such as default_weight_fake_quant, or torch.nn.Identity to train with a float weight"
            )
        self.qconfig = qconfig
        where = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
        made: Any = qconfig.weight(factory_kwargs=where) if where else qconfig.weight()
        self.weight_fake_quant = made

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """Make the QAT layer of `mod`, sharing its parameters; `mod` itself is not changed.

        `mod` is exactly a `_FLOAT_MODULE` with a `qconfig`. The second argument exists for the swap protocol.
        """
        qconfig = float_qconfig(cls, mod)
        layer = mod[0] if isinstance(mod, FusedModule) else mod
        qat = cls(**cls._arguments(layer), qconfig=qconfig)
        share_parameters(layer, qat)
        qat.weight_fake_quant.to(layer.weight.device)
        return qat

    @classmethod
    def _arguments(cls, layer: Any) -> dict[str, Any]:
        """The constructor arguments of a float or QAT layer."""
        bias = {"bias": layer.bias is not None} if hasattr(layer, "bias") else {}
        return {**cls._family.geometry(layer), **bias}

    def to_float(self) -> Any:
        """The float layer with these weights, without fake quantization; a fused one where this is fused."""
        layer: Any = self._family.float_types[0](**self._arguments(self))
        layer.weight = detached(self.weight)
        if getattr(self, "bias", None) is not None:
            layer.bias = detached(self.bias)
        return self._fuse_float(layer)

    def _fuse_float(self, layer: nn.Module) -> nn.Module:
        """Put the tail behind the float layer: as what `from_float` took, or that without its norm."""
        if self._FLOAT_RELU_MODULE is not None:
            whole = getattr(self, "_FUSED_FLOAT_MODULE", self._FLOAT_MODULE)
            layer = whole(layer, self._FLOAT_RELU_MODULE())
        return layer.train(self.training)


def float_qconfig(cls: type[Any], mod: Any) -> Any:
    """The qconfig of a float module that `cls.from_float` can take, or the error that says why it cannot."""
    expected, got = cls._FLOAT_MODULE, type_before_parametrizations(mod)
    call = f"qat.{cls.__name__}.from_float"
    same = cls._family.float_types if expected in cls._family.float_types else (expected,)
    if got not in same:
        raise InvalidRequest(
            f"{call} only works for {expected.__name__}, got {got.__name__}: pass exactly that type; a "
            "subclass may compute something else, so map it to a QAT class of its own"
        )
    if not hasattr(mod, "qconfig"):
        raise InvalidRequest(
            f"Input float module must have qconfig defined: set module.qconfig before {call}, for example to "
            "get_default_qat_qconfig('x86')"
        )
    if not mod.qconfig:
        raise InvalidRequest(
            f"Input float module must have a valid qconfig, got {mod.qconfig!r}: set module.qconfig before "
            f"{call}, or leave the module float"
        )
    require_plain_weight(mod[0] if isinstance(mod, FusedModule) else mod, "quantization-aware training of")
    return mod.qconfig


def share_parameters(layer: Any, qat: Any) -> None:
    """Give `qat` the parameter objects of `layer`, and its parametrizations where it has any."""
    for name in ("weight", "bias"):
        if is_parametrized(layer, name):
            transfer_parametrizations_and_params(layer, qat, name)
        elif hasattr(layer, name):
            setattr(qat, name, getattr(layer, name))


def detached(parameter: Tensor) -> nn.Parameter:
    """A parameter on the same storage that takes no part in the graph of the old one."""
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


class QatLinear(Qat):
    """Constructor and float operation of the linear cells."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._fake_quantize_weight(qconfig, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight_fake_quant(self.weight), self.bias)


class QatConv(Qat):
    """Constructor and float operation of the convolutions of every rank and padding mode."""

    _FLOAT_CONV_MODULE: Any = None

    if TYPE_CHECKING:
        _conv_forward: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self._fake_quantize_weight(qconfig, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)


class QatConvReLU(QatConv):
    """A convolution followed by ReLU."""

    _FLOAT_BN_MODULE: Any = None
    _FLOAT_RELU_MODULE: Any = nn.ReLU

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias))
