"""What is checked before torch's passes run, because they answer late, unclearly, or by a crash."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule

from quantization.errors import QuantizationError, notify
from quantization.quant_type import QuantType
from quantization.torchscript.passes import ScriptError

_OBSERVER = re.compile(r"_observer_\d+")
# dtypes are integers inside TorchScript; these are the wire format of the ones that matter here.
_DTYPES = {5: torch.float16, 6: torch.float32, 12: torch.qint8, 13: torch.quint8, 14: torch.qint32}
_QSCHEMES = {
    0: torch.per_tensor_affine,
    1: torch.per_channel_affine,
    2: torch.per_tensor_symmetric,
    3: torch.per_channel_symmetric,
    4: torch.per_channel_affine_float_qparams,
}
_EMBEDDING_OPS = ("embedding_bag_byte", "embedding_bag_4bit")
_EMBEDDINGS = ("aten::embedding_bag", "prim::CallFunction", "prim::CallMethod", "prim::Return")


def require_script_module(model: Any) -> None:
    """Refuse anything but a script module."""
    if not isinstance(model, ScriptModule):
        raise QuantizationError(
            f"input must be a script module, got: {type(model)}. Make one with torch.jit.script(model) or "
            "torch.jit.trace(model, example_inputs); for an eager model use quantization.prepare and "
            "convert, or quantize_dynamic"
        )


def require_method(model: ScriptModule, method: str) -> None:
    """Refuse a model without a method of that name."""
    if not isinstance(method, str):
        raise QuantizationError(f"method_name must be a str such as 'forward', got {method!r}")
    if not model._c._has_method(method):
        has = ", ".join(model._c._method_names()) or "none"
        raise ScriptError(
            f"input script module does not have {method} method (Method '{method}' is not defined); it has: "
            f"{has}. Script the module that has it, or mark the method with @torch.jit.export before "
            "scripting"
        )


def require_forward(model: ScriptModule) -> None:
    """Refuse a model without `forward`."""
    require_method(model, "forward")


def require_qconfig_dict(qconfig_dict: Any) -> None:
    """Refuse anything but a mapping from module names to qconfigs or None."""
    if not isinstance(qconfig_dict, Mapping):
        raise QuantizationError(
            f"qconfig_dict must be a dict such as {{'': qconfig}}, got {type(qconfig_dict).__name__}; '' is "
            "the whole model, 'a.b' a submodule"
        )
    bad = [key for key in qconfig_dict if not isinstance(key, str)]
    if bad:
        raise QuantizationError(
            f"qconfig_dict should only contain names(str) as keys, got {bad[0]!r}. Types cannot be named in "
            "a script module, where classes are compiled away: use the names of the submodules"
        )
    for key, value in qconfig_dict.items():
        if value is not None and not (hasattr(value, "activation") and hasattr(value, "weight")):
            raise QuantizationError(
                f"qconfig_dict[{key!r}] must be a QConfig or None, got {type(value).__name__}; pass "
                "QConfig(activation=..., weight=...), or None to leave the submodule in float"
            )


def warn_of_unknown_names(model: ScriptModule, qconfig_dict: Mapping[str, Any]) -> None:
    """Say which keys name no submodule: they have no effect."""
    known = {name for name, _ in model.named_modules()} | {""}
    unknown = sorted(set(qconfig_dict) - known)
    if unknown:
        notify(
            f"qconfig_dict names submodules that the model does not have: {unknown}; they have no effect",
            False,
            5,
        )


def observers_in(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of each observer that the passes inserted."""
    for path, module in model.named_modules():
        if _OBSERVER.fullmatch(path.rpartition(".")[2]):
            yield path, module


def require_sound_observers(model: ScriptModule, kind: QuantType, before: Collection[str] = ()) -> None:
    """Refuse observers that the conversion cannot use, above all those that would end the process.

    Converting dynamically with an 8-bit placeholder whose `is_dynamic` is false, or with an embedding-bag
    placeholder on any other weight, makes torch's pass read an empty list: a segmentation fault. The paths in
    `before` were there before and are for a conversion of another kind.
    """
    for path, observer in observers_in(model):
        if path in before or "PlaceholderObserver" not in observer._c.qualified_name:
            continue
        if getattr(observer, "custom_op", "") in _EMBEDDING_OPS:
            _require_embedding(model, path, observer)
        elif kind is QuantType.STATIC:
            raise QuantizationError(
                f"'{path}' is a PlaceholderObserver, which records no range, but static quantization needs "
                "one: use an observer with statistics (MinMaxObserver, HistogramObserver) in the qconfig, "
                "or prepare_dynamic_jit and convert_dynamic_jit"
            )
        elif dtype_of(observer) in (torch.quint8, torch.qint8) and not getattr(observer, "is_dynamic", False):
            raise QuantizationError(
                f"'{path}' is a PlaceholderObserver of dtype {dtype_of(observer)} with is_dynamic=False, "
                "with which torch's dynamic quantization ends the process: make it with "
                "PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True), as in "
                "default_dynamic_qconfig"
            )


def dtype_of(observer: Any) -> Any:
    """The dtype of a scripted observer, as torch names it; None if it has none."""
    return _field(observer, "dtype", _DTYPES)


def qscheme_of(observer: Any) -> Any:
    """The qscheme of a scripted observer, as torch names it; None if it has none."""
    return _field(observer, "qscheme", _QSCHEMES)


def _field(observer: Any, name: str, names: Mapping[int, Any]) -> Any:
    compiled = getattr(observer, "_c", observer)
    value = compiled.getattr(name) if compiled.hasattr(name) else None
    return names.get(value, value) if isinstance(value, int) else value


def _require_embedding(model: ScriptModule, path: str, observer: Any) -> None:
    parent, _, name = path.rpartition(".")
    owner: Any = dict(model.named_modules())[parent]
    for method in owner._c._method_names():
        others = [k for k in _ops_behind(owner._c._get_method(method).graph, name) if k not in _EMBEDDINGS]
        if others:
            raise QuantizationError(
                f"'{path}' is a PlaceholderObserver for {observer.custom_op}, but what it observes goes to "
                f"{others[0]}, with which torch's pass ends the process: give that qconfig to the embedding "
                f"bags only, by name, and None or another qconfig to '{parent or '<root>'}'"
            )


def _ops_behind(graph: Any, observer: str) -> Iterator[str]:
    """The kinds of the nodes that read a value after `observer`."""
    for node in graph.nodes():
        if node.kind() != "prim::CallMethod":
            continue
        called = next(node.inputs()).node()
        if called.kind() == "prim::GetAttr" and called.s("name") == observer:
            yield from (use.user.kind() for use in node.output().uses())


def warn_of_unseen(unseen: list[str]) -> None:
    """Say which observers got no data: their scale will be 1."""
    if unseen:
        shown = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        notify(
            f"{len(unseen)} observers have seen no data ({shown}) and will give scale 1 and zero point 0: "
            "run the prepared model on representative inputs before converting it",
            False,
            5,
        )
