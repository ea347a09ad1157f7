"""Dynamic quantization that ends on the device: what the server adds to a script module before shipping it.

For a method `m` the model gets `reset_observers_m` and `observe_m` (prepare), then `quantize_m`, which packs
the observed weights and empties the float ones, and `quantized_m`, which runs on the packed ones (convert).
The device runs them once, see `quantization.torchscript.device`. Until then the packed weights are empty
attributes, so the file holds the weights once, in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.jit import ScriptModule

from quantization.errors import InvalidRequest, QuantizationError, notify
from quantization.qconfig import QConfigAny
from quantization.quant_type import QuantType
from quantization.torchscript import checks, passes
from quantization.torchscript.graph import script_qconfig_dict, settle
from quantization.torchscript.passes import ScriptError

_PACKED = "_ondevice_ptq_packed_weight_"
HELPERS = ("reset_observers_", "observe_", "quantize_", "quantized_")


def quantize_ondevice_dynamic_jit(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    method_name: str = "forward",
    inplace: bool = False,
) -> ScriptModule:
    """Add to a script module all that a device needs to quantize one of its methods dynamically, by itself.

    The method keeps its meaning until the device has run the helpers. Batch norms are folded, as in
    `quantize_dynamic_jit`, whose outputs the finalized model repeats bit for bit; only layers called in a
    loop differ, which here stay in float.

    >>> import warnings
    >>> from quantization import default_dynamic_qconfig
    >>> warnings.simplefilter("ignore", DeprecationWarning)
    >>> model = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    >>> shipped = quantize_ondevice_dynamic_jit(model, {"": default_dynamic_qconfig})
    >>> hasattr(shipped, "quantize_forward"), hasattr(shipped, "quantized_forward")
    (True, True)
    """
    prepared = prepare_ondevice_dynamic_jit(model, qconfig_dict, method_name)
    return settle(model, _with_quantized_method(prepared, method_name, QuantType.DYNAMIC, False), inplace)


def prepare_ondevice_dynamic_jit(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    method_name: str = "forward",
    inplace: bool = False,
) -> ScriptModule:
    """Inline method `m` and add `reset_observers_m` and `observe_m`, which watch its weights."""
    return prepare_ondevice_jit(model, qconfig_dict, method_name, inplace, QuantType.DYNAMIC)


def convert_ondevice_dynamic_jit(
    model: ScriptModule, method_name: str, inplace: bool = False, debug: bool = False
) -> ScriptModule:
    """Add `quantize_m` and `quantized_m` to a model that was prepared for method `m`."""
    return convert_ondevice_jit(model, method_name, inplace, debug, QuantType.DYNAMIC)


def prepare_ondevice_jit(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    method_name: str = "forward",
    inplace: bool = False,
    quant_type: QuantType = QuantType.STATIC,
) -> ScriptModule:
    """`prepare_ondevice_dynamic_jit` for a kind of quantization; only dynamic can be converted."""
    checks.require_script_module(model)
    checks.require_method(model, method_name)
    _require_fresh(model, method_name)
    scripted = script_qconfig_dict(qconfig_dict)
    _require_one_qconfig(qconfig_dict)
    _require_weight_observers(scripted)
    _warn_of_name_of_self(model, method_name)
    # Batch norms first: once inlined, they are no longer found, and folding would still change their weights.
    prepared = passes.fold_conv_bn(model)
    passes.inline(prepared, method_name)
    prepared = passes.add_observe_methods(prepared, method_name, scripted, QuantType(quant_type))
    if not prepared._c._has_method(f"reset_observers_{method_name}"):
        notify(
            f"nothing in {method_name} is quantized: none of its linear layers has a qconfig, or it has "
            "none. The device has nothing to do",
            False,
            4,
        )
    return settle(model, prepared, inplace)


def convert_ondevice_jit(
    model: ScriptModule,
    method_name: str,
    inplace: bool = False,
    debug: bool = False,
    quant_type: QuantType = QuantType.STATIC,
) -> ScriptModule:
    """`convert_ondevice_dynamic_jit` for a kind of quantization; any but dynamic is refused."""
    checks.require_script_module(model)
    if quant_type != QuantType.DYNAMIC:
        raise InvalidRequest(
            f"on-device quantization is dynamic, got quant_type={QuantType(quant_type).name}: call "
            "convert_ondevice_dynamic_jit, or convert_jit before shipping for static quantization"
        )
    if str(method_name).startswith("observe_"):
        raise InvalidRequest(
            f"pass the name of the method itself, not of its observing form, got {method_name!r}"
        )
    if not model._c._has_method(f"observe_{method_name}"):
        raise ScriptError(
            f"Method 'observe_{method_name}' is not defined: the model is not prepared for on-device "
            f"quantization of {method_name!r}; call prepare_ondevice_dynamic_jit with that method first"
        )
    if model._c._has_method(f"quantize_{method_name}"):
        raise ScriptError(
            f"{method_name!r} is converted already: the model has quantize_{method_name}; ship it"
        )
    return settle(model, _with_quantized_method(model, method_name, QuantType.DYNAMIC, debug), inplace)


def _with_quantized_method(model: ScriptModule, method: str, kind: QuantType, debug: bool) -> ScriptModule:
    converted = passes.add_quantize_method(model, method, kind, debug)
    converted = passes.add_quantized_method(converted, method, kind)
    _keep_weights_still_read(converted, method)
    return converted


def _keep_weights_still_read(model: ScriptModule, method: str) -> None:
    """Let `quantize_m` empty a weight only after its last use.

    The pass empties it after the first, so that a layer called twice, or once more in a loop, which stays in
    float, would fail on the device.
    """
    read = {_path(node) for node in getattr(model, f"quantized_{method}").graph.findAllNodes("prim::GetAttr")}
    for node in reversed(getattr(model, f"quantize_{method}").graph.findAllNodes("prim::SetAttr")):
        path = _path(node)
        if _PACKED in path:
            continue
        if path in read:
            node.destroy()
        read.add(path)


def _path(node: Any) -> str:
    """The dotted name of the attribute that a node reads or writes."""
    owner = next(node.inputs()).node()
    return f"{_path(owner)}.{node.s('name')}" if owner.kind() == "prim::GetAttr" else node.s("name")


def _require_fresh(model: ScriptModule, method: str) -> None:
    if method.startswith(HELPERS):
        raise QuantizationError(
            f"{method!r} is a helper of on-device quantization; pass the name of the method to be quantized"
        )
    present = [prefix + method for prefix in HELPERS if model._c._has_method(prefix + method)]
    if present:
        raise ScriptError(
            f"the model is prepared for on-device quantization of {method!r} already: it has "
            f"{', '.join(present)}. Start from the model as it was before"
        )


def _require_one_qconfig(qconfig_dict: Mapping[str, QConfigAny]) -> None:
    """Refuse what the pass would ignore: it sees one inlined method, in which submodules have no names."""
    root = qconfig_dict.get("")
    others = [name for name, qconfig in qconfig_dict.items() if qconfig is not root and qconfig != root]
    if others:
        raise QuantizationError(
            f"qconfig_dict gives {others} a qconfig of their own, but on-device quantization inlines the "
            "method and has one qconfig for all of it, that of '': pass {'': qconfig}, or call "
            "quantize_dynamic_jit before shipping"
        )


def _require_weight_observers(scripted: Mapping[str, QConfigAny]) -> None:
    """Refuse here what would fail on the device."""
    for name, qconfig in scripted.items():
        if qconfig is None:
            continue
        dtype, qscheme = checks.dtype_of(qconfig.weight), checks.qscheme_of(qconfig.weight)
        if dtype is not torch.qint8 or qscheme is torch.per_channel_affine_float_qparams:
            raise QuantizationError(
                f"the weight observer of qconfig_dict[{name!r}] is for {dtype} and {qscheme}, but on-device "
                "quantization packs linear weights as torch.qint8 with integer zero points: use "
                "default_dynamic_qconfig or per_channel_dynamic_qconfig"
            )
        if not qconfig.weight._has_method("reset_min_max_vals"):
            kind = qconfig.weight.qualified_name.rpartition(".")[2]
            raise ScriptError(
                f"the weight observer of qconfig_dict[{name!r}] is {kind}, but on-device quantization "
                "resets its weight observers (Method 'reset_min_max_vals' is not defined): use "
                "MinMaxObserver or PerChannelMinMaxObserver with dtype=torch.qint8, as in "
                "default_dynamic_qconfig"
            )


def _warn_of_name_of_self(model: ScriptModule, method: str) -> None:
    name = model._c._get_method(method).schema.arguments[0].name
    if name != "self":
        notify(
            f"the first parameter of {method} is called {name!r}, and the lite interpreter can replace only "
            "methods whose first parameter is called 'self': finalizing will fail there. Rename it",
            False,
            4,
        )
