"""Post-training static quantization: prepare, calibrate, convert."""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from quantization.engine.copying import copied
from quantization.engine.observe import Plan, attach, drop_observer, has_qconfig, is_observed
from quantization.engine.propagate import propagate_qconfig_
from quantization.engine.tree import (
    Site,
    WayBack,
    check_model,
    is_leaf,
    restoring,
    rewrite,
    walk,
)
from quantization.errors import QuantizationWarning, Unsupported, notify
from quantization.nn.stub_modules import QuantizeDequantize
from quantization.stubs import QuantStub, QuantWrapper
from quantization.workflows import findings
from quantization.workflows.conversion import Conversion, borrowed
from quantization.workflows.reuse import shared_ranges
from quantization.workflows.tables import (
    DEFAULT_MODULE_TO_ACT_POST_PROCESS,
    MORE_STATIC_QUANT_MODULE_MAPPINGS,
    SKIPPED_TYPES,
    get_default_custom_config_dict,
    get_default_qconfig_propagation_list,
    get_default_static_quant_module_mappings,
    get_default_static_quant_reference_module_mappings,
    no_observer_set,
)


def prepare(
    model: nn.Module,
    inplace: bool = False,
    allow_list: Collection[Any] | None = None,
    observer_non_leaf_module_list: Collection[Any] | None = None,
    prepare_custom_config_dict: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
) -> nn.Module:
    """Attach an observer to each module of `model` that quantizes; run data through the result to calibrate.

    Qconfigs are taken from `.qconfig` attributes and inherited by children. Preparing twice is harmless.

    Args:
        inplace: change `model` itself instead of a copy. Use the return value either way: a root that is
            itself a custom module is replaced.
        allow_list: module types that get an observer; default `get_default_qconfig_propagation_list()`.
        observer_non_leaf_module_list: further types observed as a whole, children and all.
        prepare_custom_config_dict: `float_to_observed_custom_module_class` maps custom float types to their
            observed classes; default `get_default_custom_config_dict()`.
        strict: raise where a warning would say that nothing happened.

    Raises:
        QuantizationError: names the module and the cure; `model` is then as before.

    >>> model = nn.Sequential(QuantStub(), nn.Linear(4, 2), DeQuantStub()).eval()
    >>> model.qconfig = get_default_qconfig()
    >>> prepared = prepare(model)
    >>> _ = prepared(torch.randn(8, 4))
    >>> type(convert(prepared)[1]).__name__
    'Linear'
    """
    check_model(model)
    if not inplace:
        model = copied(model)
    with restoring(model):
        propagate_qconfig_(model, prepare_custom_config_dict=prepare_custom_config_dict)
        return _observe(
            model, allow_list, observer_non_leaf_module_list, prepare_custom_config_dict, strict=strict
        )


def add_observer_(
    module: nn.Module,
    qconfig_propagation_list: Collection[Any] | None = None,
    non_leaf_module_list: Collection[Any] | None = None,
    device: torch.device | None = None,
    custom_module_class_mapping: Mapping[Any, Any] | None = None,
) -> None:
    """Attach observers in place to a module whose qconfigs are set already, without propagating any.

    `device` is accepted for compatibility: observers go where the module is.
    """
    custom = {"float_to_observed_custom_module_class": custom_module_class_mapping or {}}
    with restoring(module):
        attach(module, _plan(qconfig_propagation_list, non_leaf_module_list, custom))


def _observe(
    model: nn.Module,
    leaves: Collection[Any] | None,
    units: Collection[Any] | None,
    custom_config: Mapping[str, Any] | None,
    strict: bool,
) -> nn.Module:
    model = attach(model, _plan(leaves, units, custom_config))
    message = findings.nothing_observed(model)
    if message:
        notify(message, strict, stacklevel=4)
    return model


def _plan(
    leaves: Collection[Any] | None,
    units: Collection[Any] | None,
    custom_config: Mapping[str, Any] | None,
) -> Plan:
    custom = get_default_custom_config_dict() if custom_config is None else custom_config
    return Plan(
        leaves=get_default_qconfig_propagation_list() if leaves is None else leaves,
        units=units or (),
        skipped=SKIPPED_TYPES,
        fixed_ranges=DEFAULT_MODULE_TO_ACT_POST_PROCESS,
        observed_classes=custom.get("float_to_observed_custom_module_class", {}),
        unobserved_classes=no_observer_set(),
    )


def convert(
    module: nn.Module,
    mapping: Mapping[Any, Any] | None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    is_reference: bool = False,
    convert_custom_config_dict: Mapping[str, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
    *,
    strict: bool = False,
) -> nn.Module:
    """Swap each calibrated module of `module` for its quantized counterpart.

    Args:
        mapping: from module types to the classes that replace them; default: the static table, or the
            reference table with `is_reference`.
        inplace: change `module` itself instead of a copy. Use the return value either way: a root that has a
            counterpart of its own is replaced.
        remove_qconfig: also remove qconfigs, observers and their hooks, which leaves a model for inference.
        is_reference: convert to modules that do float arithmetic with rounded weights, on any device; the
            model's input is rounded too, what is computed inside is not.
        convert_custom_config_dict: `observed_to_quantized_custom_module_class` maps observed custom types to
            their quantized classes; default `get_default_custom_config_dict()`.
        use_precomputed_fake_quant: let QAT weights keep the ranges that training ended with.
        strict: raise where a warning would name modules that were not prepared or saw no data.

    Raises:
        QuantizationError: names the module and the cure; `module` is then as before. Only an interrupt or
            lack of memory can leave it, in place, with some layers quantized.
    """
    check_model(module)
    _check_calibrated(module, mapping, is_reference, strict)
    if mapping is None:
        mapping = _default_mapping(is_reference)
        if is_reference and convert_custom_config_dict is None:
            convert_custom_config_dict = {}  # composites are converted by their parts
    loan = None if inplace else borrowed(module, mapping)
    if loan is not None:
        module = loan.model
    conversion = Conversion(module, mapping, convert_custom_config_dict, use_precomputed_fake_quant)
    with restoring(module) as way_back:
        if loan is not None:
            loan.settle(conversion.reads())
        module = _carried_out(conversion, mapping, way_back)
    if remove_qconfig:
        remove_qconfig_(module)
    return module


def convert_calibrated(
    model: nn.Module, mapping: Mapping[Any, Any] | None, way_back: WayBack, strict: bool
) -> nn.Module:
    """`convert` in place, inside of a longer workflow that has the way back."""
    _check_calibrated(model, mapping, is_reference=False, strict=strict)
    table = _default_mapping(is_reference=False) if mapping is None else mapping
    model = _carried_out(Conversion(model, table), table, way_back)
    remove_qconfig_(model)
    return model


def _carried_out(conversion: Conversion, mapping: Mapping[Any, Any], way_back: WayBack) -> nn.Module:
    """Both phases, and the notes for `summary`."""
    with _observers_unheard():
        conversion.begin()
        way_back.cut()
        model = conversion.finish()
    findings.record_left_float(model, mapping)
    return model


def _check_calibrated(
    model: nn.Module, mapping: Mapping[Any, Any] | None, is_reference: bool, strict: bool
) -> None:
    """Say what is wrong with a model about to be converted, and refuse what would not run then."""
    for message in findings.before_convert(model, mapping is None):
        notify(message, strict, stacklevel=4)
    blocked = findings.cannot_run(model) if mapping is None and not is_reference else None
    if blocked:
        raise Unsupported(blocked)
    message = shared_ranges(model)
    if message:
        notify(message, strict=False, stacklevel=4)


@contextlib.contextmanager
def _observers_unheard() -> Generator[None]:
    """Silence each observer's own word that it saw no data: `convert` has said so, once, for all of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*must run observer", QuantizationWarning)
        yield


def _default_mapping(is_reference: bool) -> Mapping[Any, Any]:
    if is_reference:
        # torch.ao's table has Quantize here, whose result no layer of a reference model can take.
        return {**get_default_static_quant_reference_module_mappings(), QuantStub: QuantizeDequantize}
    return {**MORE_STATIC_QUANT_MODULE_MAPPINGS, **get_default_static_quant_module_mappings()}


def remove_qconfig_(model: nn.Module) -> None:
    """Remove qconfigs, observers and observer hooks from every module, in place."""
    for site in list(walk(model)):
        if "qconfig" in vars(site.module):
            del site.module.qconfig
        drop_observer(site.module)


def quantize(
    model: nn.Module,
    run_fn: Callable[..., Any],
    run_args: Iterable[Any],
    mapping: Mapping[Any, Any] | None = None,
    inplace: bool = False,
    *,
    strict: bool = False,
) -> nn.Module:
    """Prepare `model`, calibrate it with `run_fn(model, *run_args)` and convert it; inference mode is set.

    >>> model = nn.Sequential(QuantStub(), nn.Linear(4, 2), DeQuantStub())
    >>> model.qconfig = get_default_qconfig()
    >>> quantized = quantize(model, lambda m, x: m(x), [torch.randn(8, 4)])
    >>> quantized(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """
    check_model(model)
    if not inplace:
        model = copied(model)
    with restoring(model) as way_back:
        model.eval()
        model = prepare(model, inplace=True, strict=strict)
        run_fn(model, *run_args)
        return convert_calibrated(model, mapping, way_back, strict)


def default_eval_fn(model: nn.Module, calib_data: Iterable[tuple[Any, Any]]) -> None:
    """Run `model` on the inputs of `(input, target)` pairs: the calibration loop most programs need."""
    for data, _target in calib_data:
        model(data)


def add_quant_dequant(module: nn.Module) -> nn.Module:
    """Wrap each childless module that has a qconfig into a `QuantWrapper`, in place.

    Returns the root: a new one if the root itself is wrapped.
    """

    def wrap(site: Site) -> nn.Module:
        if is_leaf(site.module) and has_qconfig(site.module):
            return QuantWrapper(site.module)
        return site.module

    return rewrite(module, wrap, whole=lambda site: is_observed(site.module))
