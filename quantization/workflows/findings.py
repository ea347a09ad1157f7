"""What a workflow did not do, in words: which modules, why, and what to do about it."""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from mappings.observation import SUMS_IN_FLOAT
from mappings.resolve import find
from observers import NoopObserver, ObserverBase, PlaceholderObserver
from observers.state import has_seen_data
from quantization.engine.observe import has_qconfig, is_observed, is_observer
from quantization.engine.swap import AS_IS, FLOAT_TYPE, STAYED_FLOAT
from quantization.engine.tree import Site, is_leaf, walk
from quantization.markers import Composite, FusedModule, NotObserved, ObserverSlot
from quantization.stubs import QuantStub
from quantization.workflows.tables import AS_IS_TYPES


def names(sites: Iterable[Site], limit: int = 10) -> str:
    """Dotted names with their types, the first few of them."""
    shown = [f"'{site.path or '<root>'}' ({type(site.module).__name__})" for site in sites]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def observed_count(model: nn.Module) -> int:
    """How many modules carry an observer of their output."""
    return sum(is_observed(site.module) for site in walk(model))


def nothing_observed(model: nn.Module) -> str | None:
    """Why the prepared `model` has nothing to calibrate or train, if so."""
    if any(_is_instrumented(site.module) for site in walk(model)):
        return None
    if _was_converted(model):
        return _QUANTIZED_ALREADY
    if not any(has_qconfig(site.module) for site in walk(model)):
        return (
            "prepare attached no observer: no module has a qconfig. Set model.qconfig = "
            "get_default_qconfig(), or the .qconfig of those submodules that shall be quantized, and prepare "
            "again"
        )
    leaves = [site for site in walk(model) if has_qconfig(site.module) and is_leaf(site.module)]
    return (
        "prepare attached no observer: no module that has a qconfig is of a type that quantizes; these have "
        f"one: {names(leaves)}. See get_default_qconfig_propagation_list(), or pass allow_list"
    )


_QUANTIZED_ALREADY = (
    "the model is quantized already, and no more of it was now: see quantization.summary(model). To quantize "
    "it in another way, start from the float model"
)
_NO_QCONFIG = (
    "convert found no module with a qconfig, so nothing is quantized: set model.qconfig, call "
    "prepare(model), run calibration data through the result, and convert that"
)
_NEVER_PREPARED = (
    "convert found no observer: the model was never prepared, so activations get scale 1 and zero point 0. "
    "Call prepare(model) and run calibration data through the result before convert"
)


def _was_converted(model: nn.Module) -> bool:
    return any(hasattr(site.module, FLOAT_TYPE) and not _is_instrumented(site.module) for site in walk(model))


def before_convert(model: nn.Module, static: bool) -> Iterable[str]:
    """What is wrong with a model about to be converted; `static` says that ranges are needed."""
    sites = list(walk(model))
    already = _was_converted(model)
    if not any(has_qconfig(site.module) for site in sites):
        yield _QUANTIZED_ALREADY if already else _NO_QCONFIG
        return
    if not static:
        return
    if not any(_is_instrumented(site.module) for site in sites):
        yield _QUANTIZED_ALREADY if already else _NEVER_PREPARED
        return
    unseen = [site for site in sites if is_observed(site.module) and _saw_nothing(site.module)]
    if unseen:
        yield (
            f"{len(unseen)} of {observed_count(model)} observers saw no data before convert: "
            f"{names(unseen)}. Their activations get scale 1 and zero point 0. Run calibration data through "
            "the prepared model (the one that prepare returned); where a module is never called, set its "
            "qconfig to None. If a checkpoint is loaded next, ignore quantization.QuantizationWarning"
        )


def cannot_run(model: nn.Module) -> str | None:
    """Which modules would, once their children are static, add quantized tensors with `+`, if so."""
    types = [find(name) for name in SUMS_IN_FLOAT]
    blocked = [
        site
        for site in walk(model)
        if site.type in types and any(_becomes_static(child) for _, child in site.children())
    ]
    if not blocked:
        return None
    return (
        f"{names(blocked)} cannot be quantized statically: its forward adds residuals with `+`, which torch "
        "has no quantized kernel for. Use quantize_dynamic, which needs no change of the model; or set the "
        "layer's qconfig to None before prepare; or write the layer with FloatFunctional().add for `+`"
    )


def _becomes_static(site: Site) -> bool:
    return has_qconfig(site.module) and (is_observed(site.module) or isinstance(site.module, Composite))


def _is_instrumented(module: nn.Module) -> bool:
    return is_observed(module) or "weight_fake_quant" in module._modules


def _saw_nothing(module: nn.Module) -> bool:
    if isinstance(module, ObserverSlot) and module.only_scalars:
        return False
    return has_seen_data(module.get_submodule("activation_post_process")) is False


def not_fake_quantized(model: nn.Module) -> str | None:
    """Which modules `prepare_qat` gave plain observers where fake quantizers were due."""
    plain = [
        site
        for site in walk(model)
        if not is_observer(site.module)
        and any(_only_observes(site.module._modules.get(slot)) for slot in _SLOTS)
    ]
    if not plain:
        return None
    return (
        f"prepare_qat: the qconfig of {names(plain)} does not fake-quantize, so training would not see the "
        "quantization error. Use get_default_qat_qconfig() instead of get_default_qconfig()"
    )


_SLOTS = ("weight_fake_quant", "activation_post_process")


def _only_observes(module: nn.Module | None) -> bool:
    passive = (PlaceholderObserver, NoopObserver)
    return isinstance(module, ObserverBase) and not isinstance(module, passive)


def record_left_float(model: nn.Module, mapping: Mapping[Any, Any]) -> None:
    """Note on each module that was not swapped why that is so, for `summary`."""
    for site in walk(model):
        if _concerns_user(site) and not hasattr(site.module, FLOAT_TYPE):
            setattr(site.module, STAYED_FLOAT, _why_float(site, mapping))


def _concerns_user(site: Site) -> bool:
    """Leaves and fused units; containers, observers and the insides of swapped modules are not news."""
    module = site.module
    inside = ("activation_post_process", "weight_fake_quant", "_packed_params", "parametrizations")
    if any(part in inside for part in site.path.split(".")) or isinstance(module, NotObserved):
        return False
    return is_leaf(module) or isinstance(module, FusedModule) or is_observed(module)


def _why_float(site: Site, mapping: Mapping[Any, Any]) -> str:
    if QuantStub in mapping and site.type in AS_IS_TYPES:
        return AS_IS
    if site.type not in mapping:
        subclass_of = next((t.__name__ for t in site.type.__mro__[1:] if t in mapping), None)
        if subclass_of:
            return f"a subclass of {subclass_of}, but tables match exact types: none for {site.type.__name__}"
    if not has_qconfig(site.module):
        return "no qconfig"
    if site.type not in mapping:
        return f"no counterpart in the mapping for {site.type.__name__}"
    return "not swapped"


def without_effect(
    model: nn.Module,
    keys: Collection[Any],
    unmatched: Collection[Any],
    mapping: Mapping[Any, Any],
    swapped: Callable[[Site], bool],
) -> str | None:
    """Which keys of a `quantize_dynamic` spec do nothing to the `model`, and why.

    The model is converted but for the modules that `swapped` holds for.
    """
    reasons = [f"{_key(key)} matches no module" for key in unmatched]
    for key in keys:
        if isinstance(key, type) and key not in unmatched and key not in mapping:
            left = [site for site in walk(model, whole=swapped) if site.type is key]
            if left:
                reasons.append(f"{key.__name__} has no dynamic counterpart, so {names(left)} stayed float")
    if not reasons:
        return None
    return (
        "quantize_dynamic: these keys of qconfig_spec had no effect: " + "; ".join(reasons) + ". Keys are "
        "module types (matched exactly, subclasses apart) or dotted names from model.named_modules()"
    )


def _key(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


def nothing_swapped(model: nn.Module, what: str) -> str | None:
    """That no module of `model` was swapped, if so."""
    if any(hasattr(site.module, FLOAT_TYPE) for site in walk(model)):
        return None
    leaves = [site for site in walk(model) if is_leaf(site.module)]
    return (
        f"{what} quantized nothing; the model consists of {names(leaves)}. Pass qconfig_spec with the types "
        "or names to quantize, or see quantization.summary(model) for the reasons"
    )
