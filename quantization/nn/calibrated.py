"""What a quantized layer is made from: the weight, its observer, and the output's scale and zero point.

Nothing here changes the module it reads: observers run as copies, and batch normalisation folds into copies.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from observers import default_weight_observer, enable_observer
from observers.state import has_seen_data
from quantization.errors import InvalidRequest
from quantization.qparams import output_qparams


@dataclass(frozen=True)
class Calibrated:
    """A float or QAT module, read.

    `weight` is detached and has batch normalisation folded in, `weight_observer` has seen it. `geometry` is
    the module that carries the constructor arguments: the first of a fused float module, else the module.
    """

    weight: Tensor
    bias: Tensor | None
    weight_observer: nn.Module
    scale: float
    zero_point: int
    geometry: nn.Module


def calibrated(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Calibrated:
    """Read a float, fused or QAT module for static quantization.

    The weight observer is the module's `weight_fake_quant` or a new `qconfig.weight()`. It sees the weight
    once more here, which moves a moving average; with `use_precomputed_fake_quant` a `weight_fake_quant` does
    not, unless it has seen nothing. Raises `InvalidRequest` when there is neither.

    >>> linear = nn.Linear(2, 2)
    >>> linear.weight_fake_quant = default_weight_observer()
    >>> calibrated(linear).scale
    1.0
    """
    inner = unwrapped(mod)
    weight, bias = folded(inner)
    observer = getattr(mod, "weight_fake_quant", None)
    if observer is None:
        observer = seen(weight, new_weight_observer(mod, inner))
    elif not use_precomputed_fake_quant or has_seen_data(observer) is False:
        observer = _seen_by_copy(weight, observer)
    scale, zero_point = output_qparams(mod)
    return Calibrated(weight, bias, observer, scale, zero_point, inner)


def calibrated_weight(mod: nn.Module) -> Calibrated:
    """Read a float, fused or QAT module for dynamic quantization: only the weight matters.

    The observer is always a new `qconfig.weight()`, or the default one where the qconfig is None, also for a
    QAT module, as torch.ao has it.
    """
    inner = unwrapped(mod)
    weight, bias = folded(inner)
    qconfig = _qconfig(mod, inner)
    make = getattr(qconfig, "weight", None) or default_weight_observer
    observer = make()
    return Calibrated(weight, bias, seen(weight, observer), 1.0, 0, inner)


def unwrapped(mod: nn.Module) -> Any:
    """The weighted module inside a fused float module; any other module itself."""
    if isinstance(mod, nn.Sequential) and not hasattr(mod, "weight_fake_quant"):
        return mod[0]
    return mod


def folded(mod: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, detached, with the `bn` of a batch-normalised QAT module folded in."""
    weight = mod.weight.detach()
    bias = None if mod.bias is None else mod.bias.detach()
    bn = getattr(mod, "bn", None)
    if bn is None:
        return weight, bias
    fuse = fuse_linear_bn_weights if isinstance(mod, nn.Linear) else fuse_conv_bn_weights
    weight, bias = fuse(weight, bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    return weight.detach(), bias.detach()


def own_bias(bias: Tensor | None) -> Tensor | None:
    """A copy as float32: packed weights keep the tensor that they are given, and the source keeps its own."""
    return None if bias is None else bias.detach().to(torch.float32, copy=True)


def seen(weight: Tensor, observer: nn.Module) -> nn.Module:
    """Run the observer on the weight, and give it back."""
    with torch.no_grad():
        observer(weight)
    return observer


def _seen_by_copy(weight: Tensor, fake_quantizer: Any) -> nn.Module:
    """Run a copy of a fake quantizer on the weight.

    In a layer that training never called it has no range yet, and perhaps was switched off since. The weight
    is all it needs, so it observes now.
    """
    fake_quantizer = copy.deepcopy(fake_quantizer)
    if has_seen_data(fake_quantizer) is False:
        enable_observer(fake_quantizer)
    return seen(weight, fake_quantizer)


def new_weight_observer(mod: nn.Module, inner: nn.Module) -> nn.Module:
    """A new observer from the qconfig of the module, or of the one that wraps it."""
    qconfig = _qconfig(mod, inner)
    if qconfig is None or qconfig.weight is None:
        raise InvalidRequest(
            f"{type(mod).__name__} must have qconfig defined, with a weight observer, but its qconfig is "
            f"{qconfig}: set module.qconfig before prepare"
        )
    return qconfig.weight()


def _qconfig(mod: nn.Module, inner: nn.Module) -> Any:
    if not hasattr(inner, "qconfig") and not hasattr(mod, "qconfig"):
        raise InvalidRequest(
            f"Input float module must have qconfig defined: {type(mod).__name__} has none. "
            "Set module.qconfig before prepare, or call quantize_dynamic on the whole model"
        )
    return getattr(inner, "qconfig", None) or getattr(mod, "qconfig", None)
