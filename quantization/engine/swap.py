"""Swap one module for its counterpart: pick how, then carry over hooks, attributes, device and origin."""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import nn

from quantization.engine.attributes import carry_attributes
from quantization.engine.observe import OBSERVER_HOOKS, has_qconfig, hooks_of
from quantization.engine.qconfig_text import qconfig_text
from quantization.engine.tree import Site, devices_of, single_device
from quantization.engine.weight_hooks import computes_weight
from quantization.errors import InvalidRequest, QuantizationError
from quantization.qparams import get_qparam_dict

# What the library writes on a module: what it was, why it was not swapped, what its output is quantized to,
# the name it has in the model, by which qconfig it was swapped. Plain strings, so that they survive copies
# and travel with a submodule.
FLOAT_TYPE = "_float_type"
STAYED_FLOAT = "_stayed_float"
OUTPUT_KIND = "_output_kind"
PLACE = "_place"
QCONFIG = "_qconfig_text"
AS_IS = "works on quantized tensors as it is"


class _NoConstructor(InvalidRequest, AttributeError):
    """A mapping leads to something that cannot make a module from another."""


def swap_module(
    mod: nn.Module,
    mapping: Mapping[Any, Any],
    custom_module_class_mapping: Mapping[Any, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """The counterpart of `mod`, or `mod` itself if it has no qconfig or the tables do not list its type.

    Args:
        mapping: from a module type to the class whose `from_float` makes the counterpart.
        custom_module_class_mapping: from an observed custom type to the class whose `from_observed` does.
        use_precomputed_fake_quant: let a QAT weight keep the ranges its fake quantizer already has.

    Raises:
        InvalidRequest: the module's tensors are on several devices, or on meta where values are needed.
    """
    if not has_qconfig(mod):
        return mod
    site = Site(mod, "")
    custom = custom_module_class_mapping or {}
    with _values_needed(mod):
        if site.type in custom:
            swapped = custom[site.type].from_observed(mod)
        elif site.type not in mapping:
            return mod
        elif getattr(mapping[site.type], "_IS_REFERENCE", False):
            swapped = _from_float_reference(mod, mapping[site.type])
        else:
            swapped = _from_float(mod, mapping[site.type], use_precomputed_fake_quant)
    _carry_over(mod, swapped)
    return swapped


def planned_swap(
    mod: nn.Module, mapping: Mapping[Any, Any], use_precomputed_fake_quant: bool = False
) -> Callable[[], nn.Module] | None:
    """What makes the counterpart of `mod` after everything that can be wrong with it has been looked at.

    Raises what `swap_module` would. None where a class makes its modules in one go.
    """
    target: Any = mapping.get(type(mod))
    if not has_qconfig(mod) or not _plans(target):
        return None
    with _values_needed(mod):
        make: Callable[[], nn.Module] | None = target.planned(mod, use_precomputed_fake_quant)
    if make is None:
        return None
    # What carrying over will ask for, and is asked now while an answer may still be an error.
    _ = single_device(mod), qconfig_text(mod.qconfig)

    def made() -> nn.Module:
        swapped = make()
        _carry_over(mod, swapped)
        return swapped

    return made


def only_reads(target: Any) -> bool:
    """Whether modules made by `target.from_float` share no tensor with the source, which is only read.

    Only classes of this library are trusted to; a class of the user's may inherit the mark.
    """
    return bool(getattr(target, "_ONLY_READS", False)) and _is_ours(target)


def _is_ours(target: Any) -> bool:
    return target.__module__.partition(".")[0] == __name__.partition(".")[0]


def _plans(target: Any) -> bool:
    """Whether `planned` belongs to the `from_float` in use, and not to one that a subclass has replaced."""
    if not only_reads(target):
        return False
    return "planned" in vars(next(base for base in target.__mro__ if "from_float" in vars(base)))


@contextlib.contextmanager
def _values_needed(mod: nn.Module) -> Generator[None]:
    """Say what is wrong where torch says that a tensor on meta cannot be read."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, QuantizationError) or torch.device("meta") not in devices_of(mod):
            raise
        raise InvalidRequest(
            f"{type(mod).__name__} is on the meta device, without values to quantize: give it memory with "
            ".to_empty(device=...) and load its weights first"
        ) from error


def _from_float(mod: nn.Module, target: Any, use_precomputed_fake_quant: bool) -> nn.Module:
    """Custom classes need not know the second argument."""
    if not hasattr(target, "from_float"):
        raise _NoConstructor(
            f"the mapping gives {type(mod).__name__} the counterpart {target!r}, which has no "
            "from_float(mod): map to a class with that method"
        )
    if "use_precomputed_fake_quant" in inspect.signature(target.from_float).parameters:
        return target.from_float(mod, use_precomputed_fake_quant=use_precomputed_fake_quant)
    return target.from_float(mod)


def _from_float_reference(mod: Any, target: Any) -> nn.Module:
    """A reference module keeps its float weight; the qparams are measured here and handed over."""
    observer = mod.qconfig.weight()
    observer(mod.weight)
    return target.from_float(mod, get_qparam_dict(observer))


def _carry_over(mod: nn.Module, swapped: nn.Module) -> None:
    if swapped is mod:
        return
    pre_hooks, hooks = hooks_of(mod)
    for key, pre_hook in pre_hooks.items():
        if pre_hook not in OBSERVER_HOOKS and not computes_weight(pre_hook):
            with_kwargs = key in mod._forward_pre_hooks_with_kwargs
            swapped.register_forward_pre_hook(pre_hook, with_kwargs=with_kwargs)
    for key, hook in hooks.items():
        if hook not in OBSERVER_HOOKS:
            with_kwargs = key in mod._forward_hooks_with_kwargs
            always_call = key in mod._forward_hooks_always_called
            swapped.register_forward_hook(hook, with_kwargs=with_kwargs, always_call=always_call)
    carry_attributes(mod, swapped)
    device = single_device(mod)
    if device is not None:
        swapped.to(device)
    setattr(swapped, FLOAT_TYPE, getattr(mod, FLOAT_TYPE, type(mod).__name__))
    observer = mod._modules.get("activation_post_process")
    if observer is not None and hasattr(observer, "dtype"):
        setattr(swapped, OUTPUT_KIND, kind_text(observer.dtype, getattr(observer, "qscheme", None)))
    setattr(swapped, QCONFIG, qconfig_text(mod.qconfig))


def kind_text(dtype: Any, qscheme: Any) -> str:
    """A dtype and a qscheme, either of which may be None, in words.

    >>> import torch
    >>> kind_text(torch.qint8, torch.per_tensor_affine)
    'qint8 per_tensor_affine'
    """
    return " ".join(str(word).removeprefix("torch.") for word in (dtype, qscheme) if word is not None)
