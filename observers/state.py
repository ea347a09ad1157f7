"""Calibration statistics apart from the model, switching observers on and off, and telling what a module is.

Scripted modules are recognised by the qualified name of their class, as TorchScript keeps it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import nn

from observers.base import ObserverBase
from observers.errors import InvalidRequest
from observers.fake_quantize import FakeQuantizeBase

_MANGLING = re.compile(r"___torch_mangle_\d+\.")

_FAKE_QUANT_SCRIPTS = (
    "fake_quantize.FakeQuantize",
    "fake_quantize.FixedQParamsFakeQuantize",
    "fake_quantize.FusedMovingAvgObsFakeQuantize",
)


def _script_name(module: nn.Module) -> str:
    """The dotted name of the class a script module was made from, '' for any other module."""
    if not isinstance(module, torch.jit.ScriptModule):
        return ""
    return _MANGLING.sub("", module._c.qualified_name).removeprefix("__torch__.")


def _is_fake_quant_script_module(mod: nn.Module) -> bool:
    """Whether `mod` is a scripted fake quantizer of this library or of torch.ao."""
    return _script_name(mod).endswith(_FAKE_QUANT_SCRIPTS)


def _is_observer_script_module(mod: nn.Module, obs_type_name: str) -> bool:
    """Whether `mod` is a script module whose class name contains `obs_type_name`."""
    return obs_type_name in _script_name(mod)


def _is_scripted_observer(module: nn.Module) -> bool:
    # Ours, and those in archives written by torch.ao.
    return _script_name(module).startswith("observers.") or _is_observer_script_module(
        module, "quantization.observer"
    )


def _is_activation_post_process(module: nn.Module) -> bool:
    """Whether `module` is an observer or a fake quantizer, eager, or a scripted observer."""
    return isinstance(module, ObserverBase | FakeQuantizeBase) or _is_scripted_observer(module)


def _is_per_channel_script_obs_instance(module: nn.Module) -> bool:
    """Whether `module` is a scripted per-channel min/max observer."""
    return _is_scripted_observer(module) and "PerChannelMinMaxObserver" in _script_name(module)


def _is_fake_quant(mod: nn.Module) -> TypeGuard[FakeQuantizeBase]:
    # A scripted one has the same methods.
    return isinstance(mod, FakeQuantizeBase) or _is_fake_quant_script_module(mod)


def disable_fake_quant(mod: nn.Module) -> None:
    """Switch the rounding of `mod` off if it is a fake quantizer: `model.apply(disable_fake_quant)`.

    >>> from observers import FakeQuantize
    >>> model = nn.Sequential(FakeQuantize()).apply(disable_fake_quant)
    >>> model[0].fake_quant_enabled.item()
    0
    """
    if _is_fake_quant(mod):
        mod.disable_fake_quant()


def enable_fake_quant(mod: nn.Module) -> None:
    """Switch the rounding of `mod` on if it is a fake quantizer: `model.apply(enable_fake_quant)`.

    >>> from observers import FakeQuantize
    >>> model = nn.Sequential(FakeQuantize()).apply(disable_fake_quant).apply(enable_fake_quant)
    >>> model[0].fake_quant_enabled.item()
    1
    """
    if _is_fake_quant(mod):
        mod.enable_fake_quant()


def disable_observer(mod: nn.Module) -> None:
    """Freeze the qparams of `mod` if it is a fake quantizer: `model.apply(disable_observer)`.

    >>> from observers import FakeQuantize
    >>> model = nn.Sequential(FakeQuantize()).apply(disable_observer)
    >>> model[0].observer_enabled.item()
    0
    """
    if _is_fake_quant(mod):
        mod.disable_observer()


def enable_observer(mod: nn.Module) -> None:
    """Let `mod` observe again if it is a fake quantizer: `model.apply(enable_observer)`.

    >>> from observers import FakeQuantize
    >>> model = nn.Sequential(FakeQuantize()).apply(disable_observer).apply(enable_observer)
    >>> model[0].observer_enabled.item()
    1
    """
    if _is_fake_quant(mod):
        mod.enable_observer()


def has_seen_data(observer: nn.Module) -> bool | None:
    """Whether `observer`, or the one inside a fake quantizer, saw any data; None for kinds that need none.

    >>> from observers import MinMaxObserver, PlaceholderObserver
    >>> has_seen_data(MinMaxObserver()), has_seen_data(PlaceholderObserver())
    (False, None)
    """
    inner = getattr(observer, "activation_post_process", None)
    if isinstance(inner, nn.Module):
        return has_seen_data(inner)
    recorded = getattr(observer, "tensor_val", None)
    if isinstance(recorded, list):
        return len(recorded) > 0
    low, high = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    if not (isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor)):
        return None
    return low.numel() > 0 and high.numel() > 0 and bool((low <= high).any())


def get_observer_state_dict(mod: nn.Module) -> OrderedDict[str, Any]:
    """Return the part of `mod`'s state dict that belongs to observers.

    These are the keys that contain `activation_post_process`, in a script module those with `observer`.

    >>> from observers import MinMaxObserver
    >>> model = nn.Module()
    >>> model.activation_post_process = MinMaxObserver()
    >>> list(get_observer_state_dict(model))[0]
    'activation_post_process.eps'
    """
    marker = "observer" if isinstance(mod, torch.jit.ScriptModule) else "activation_post_process"
    full = mod.state_dict()
    found = OrderedDict((key, value) for key, value in full.items() if marker in key)
    found._metadata = getattr(full, "_metadata", {})  # pyright: ignore[reportAttributeAccessIssue]
    return found


def load_observer_state_dict(mod: nn.Module, obs_dict: Mapping[str, Any]) -> None:
    """Load what `get_observer_state_dict` returned into the observers of `mod`, eager or scripted.

    Raises InvalidRequest, and changes nothing, if statistics are missing, unexpected or do not fit.

    >>> from observers import MinMaxObserver
    >>> old, new = nn.Module(), nn.Module()
    >>> old.activation_post_process, new.activation_post_process = MinMaxObserver(), MinMaxObserver()
    >>> _ = old.activation_post_process(torch.tensor([1.0, 2.0]))
    >>> load_observer_state_dict(new, get_observer_state_dict(old))
    >>> new.activation_post_process.max_val
    tensor(2.)
    """
    given = _renamed(obs_dict)
    expected = get_observer_state_dict(mod)
    _require_same_keys(given, expected)
    metadata = getattr(obs_dict, "_metadata", {})
    observers = [
        (name, module) for name, module in mod.named_modules() if _is_activation_post_process(module)
    ]
    for name, module in observers:
        _require_fitting(given, module, name)
    for name, module in observers:
        _load_one(module, given, f"{name}." if name else "", metadata.get(name, {}))


def _renamed(obs_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Versions 1 and 2 of per-channel observers say min_vals and max_vals."""
    return {re.sub(r"\b(min_val|max_val)s$", r"\1", key): value for key, value in obs_dict.items()}


def _require_same_keys(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    # Version 1 has no eps; the observer keeps its own.
    missing = [key for key in expected if key not in given and not key.endswith(".eps")]
    if missing:
        raise InvalidRequest(
            f"Missing keys for observer {missing} in state_dict: it was made from another model. "
            "Nothing was loaded"
        )
    markers = ("activation_post_process", "observer")
    unexpected = [key for key in given if key not in expected and any(marker in key for marker in markers)]
    if unexpected:
        raise InvalidRequest(
            f"Unexpected keys for observer {unexpected} in state_dict: this model has no such observers. "
            "Prepare it with the same qconfigs first; nothing was loaded"
        )


def _require_fitting(given: Mapping[str, Any], module: nn.Module, name: str) -> None:
    for key, own in module.state_dict(prefix=f"{name}." if name else "").items():
        saved = given.get(key)
        if saved is None or _fits(key, saved, own):
            continue
        raise InvalidRequest(
            f"'{key}' has shape {tuple(saved.shape)} in state_dict but {tuple(own.shape)} in the model: "
            "use the same observers (and number of bins) as when it was saved. Nothing was loaded"
        )


def _fits(key: str, saved: torch.Tensor, own: torch.Tensor) -> bool:
    if own.dim() == 0:
        return saved.numel() <= 1
    # Per-channel statistics take the number of channels they are given.
    per_channel = key.endswith(("min_val", "max_val", "scale", "zero_point")) and saved.dim() == 1
    return per_channel or saved.shape == own.shape


def _load_one(module: nn.Module, given: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    if _is_per_channel_script_obs_instance(module):
        for name in ("min_val", "max_val"):
            if prefix + name in given:
                getattr(module, name).resize_(given[prefix + name].shape)
    problems: list[str] = []
    module._load_from_state_dict(dict(given), prefix, local_metadata, False, [], [], problems)
    if problems:
        raise InvalidRequest(f"cannot load the statistics of '{prefix.rstrip('.')}': {'; '.join(problems)}")
