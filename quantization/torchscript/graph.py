"""Post-training quantization of script modules: prepare, run on data, convert.

The shape of the calls is torch.ao's. With `inplace=True` the finished result takes the place of what the
model held; a call that fails leaves the model as it was, in place or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.jit import ScriptModule

from observers.state import has_seen_data
from quantization.errors import InvalidRequest, QuantizationError
from quantization.qconfig import QConfig, QConfigAny
from quantization.quant_type import QuantType
from quantization.torchscript import checks, passes
from quantization.torchscript.passes import ScriptError, quiet_torchscript


def script_qconfig(qconfig: Any) -> QConfig:
    """A qconfig of scripted observers, one from each factory; the passes copy these per observed value.

    >>> from quantization import default_qconfig
    >>> script_qconfig(default_qconfig).weight.qualified_name
    '__torch__.observers.minmax.MinMaxObserver'
    """
    checks.require_qconfig_dict({"": qconfig})
    if qconfig is None:
        raise QuantizationError(
            "script_qconfig needs a QConfig, got None; script_qconfig_dict passes None on"
        )
    return QConfig(
        activation=_scripted("activation", qconfig.activation), weight=_scripted("weight", qconfig.weight)
    )


def script_qconfig_dict(qconfig_dict: Mapping[str, QConfigAny]) -> dict[str, QConfigAny]:
    """`script_qconfig` for each entry; None, which means "leave in float", stays None.

    >>> script_qconfig_dict({"": None})
    {'': None}
    """
    checks.require_qconfig_dict(qconfig_dict)
    return {name: None if q is None else script_qconfig(q) for name, q in qconfig_dict.items()}


def _scripted(field: str, factory: Any) -> Any:
    """The compiled observer that a factory makes."""
    if not callable(factory):
        raise QuantizationError(
            f"qconfig.{field} must be an observer class or SomeObserver.with_args(...), got {factory!r}; "
            "TorchScript observes both activations and weights, so neither may be None"
        )
    observer = factory()
    name = type(observer).__name__
    if not hasattr(observer, "dtype"):
        raise QuantizationError(
            f"qconfig.{field} makes {name}, which has no dtype: use an observer or a fake quantizer, or "
            "None instead of the whole qconfig to leave a submodule in float"
        )
    try:
        with quiet_torchscript():
            return torch.jit.script(observer)._c
    except Exception as error:  # the compiler raises many kinds
        raise ScriptError(
            f"qconfig.{field} makes {name}, which TorchScript cannot compile: {passes.cause(error)}. Keep "
            "its forward and calculate_qparams within TorchScript's Python, or use an observer of this "
            "library"
        ) from error


def settle(model: ScriptModule, result: ScriptModule, inplace: bool) -> ScriptModule:
    """The result, put into `model` if it is to be changed in place."""
    if not inplace:
        return result
    model._reconstruct(result._c)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def fuse_conv_bn_jit(model: ScriptModule, inplace: bool = False) -> ScriptModule:
    """Fold each batch norm into the convolution before it, with its running statistics, as when evaluating.

    >>> import warnings
    >>> warnings.simplefilter("ignore", DeprecationWarning)
    >>> model = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval())
    >>> "batch_norm" in fuse_conv_bn_jit(model).inlined_graph.str()
    False
    """
    checks.require_script_module(model)
    return settle(model, passes.fold_conv_bn(model), inplace)


def prepare_jit(
    model: ScriptModule, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False
) -> ScriptModule:
    """Fold batch norms and insert observers, for static quantization; next, run the result on data.

    `qconfig_dict` maps names of submodules to qconfigs: '' is the model, a missing name inherits, None leaves
    a submodule and what it holds in float.
    """
    return prepare(model, qconfig_dict, inplace, QuantType.STATIC)


def prepare_dynamic_jit(
    model: ScriptModule, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False
) -> ScriptModule:
    """Fold batch norms and insert observers, for dynamic quantization, which needs no data."""
    return prepare(model, qconfig_dict, inplace, QuantType.DYNAMIC)


def convert_jit(
    model: ScriptModule,
    inplace: bool = False,
    debug: bool = False,
    preserved_attrs: Sequence[str] | None = None,
) -> ScriptModule:
    """Turn a model from `prepare_jit`, run on data, into one that computes in 8-bit integers.

    The result is in evaluation mode and frozen; `preserved_attrs` names attributes and methods that freezing
    must keep. `debug` leaves float operators between quantize and dequantize, to look at.
    """
    return convert(model, inplace, debug, QuantType.STATIC, preserved_attrs)


def convert_dynamic_jit(
    model: ScriptModule,
    inplace: bool = False,
    debug: bool = False,
    preserved_attrs: Sequence[str] | None = None,
) -> ScriptModule:
    """Turn a model from `prepare_dynamic_jit` into one with packed weights; see `convert_jit`."""
    return convert(model, inplace, debug, QuantType.DYNAMIC, preserved_attrs)


def quantize_jit(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    run_fn: Callable[..., Any],
    run_args: Sequence[Any],
    inplace: bool = False,
    debug: bool = False,
) -> ScriptModule:
    """Static quantization in one call: prepare, `run_fn(prepared, *run_args)`, convert.

    >>> import warnings
    >>> from quantization import default_qconfig
    >>> warnings.simplefilter("ignore", DeprecationWarning)
    >>> model = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    >>> calibrate = lambda prepared, batches: [prepared(batch) for batch in batches]
    >>> quantized = quantize_jit(model, {"": default_qconfig}, calibrate, [[torch.randn(8, 4)]])
    >>> "quantized::linear" in quantized.graph.str()
    True
    """
    return quantize(model, qconfig_dict, run_fn, run_args, inplace, debug, QuantType.STATIC)


def quantize_dynamic_jit(
    model: ScriptModule, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False, debug: bool = False
) -> ScriptModule:
    """Dynamic quantization of linear layers in one call, to int8 or float16 as the qconfig says.

    >>> import warnings
    >>> from quantization import default_dynamic_qconfig
    >>> warnings.simplefilter("ignore", DeprecationWarning)
    >>> model = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    >>> quantized = quantize_dynamic_jit(model, {"": default_dynamic_qconfig})
    >>> "quantized::linear_dynamic" in quantized.graph.str()
    True
    """
    return quantize(model, qconfig_dict, inplace=inplace, debug=debug, quant_type=QuantType.DYNAMIC)


def prepare(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    inplace: bool = False,
    quant_type: QuantType = QuantType.STATIC,
) -> ScriptModule:
    """Insert observers for a kind of quantization; torch.ao calls this `_prepare_jit`."""
    kind = QuantType(quant_type)
    checks.require_script_module(model)
    checks.require_method(model, "forward")
    scripted = script_qconfig_dict(qconfig_dict)
    checks.warn_of_unknown_names(model, qconfig_dict)
    prepared = passes.insert_observers(passes.fold_conv_bn(model), "forward", scripted, kind)
    before = {path for path, _ in checks.observers_in(model)}
    checks.require_sound_observers(prepared, kind, before)
    return settle(model, prepared, inplace)


def convert(
    model: ScriptModule,
    inplace: bool = False,
    debug: bool = False,
    quant_type: QuantType = QuantType.STATIC,
    preserved_attrs: Sequence[str] | None = None,
) -> ScriptModule:
    """Replace observers by quantization of a kind; torch.ao calls this `_convert_jit`."""
    kind = QuantType(quant_type)
    checks.require_script_module(model)
    checks.require_method(model, "forward")
    checks.require_sound_observers(model, kind)
    preserved = _preserved(model, preserved_attrs)
    if kind is QuantType.STATIC:
        seen = [(path, has_seen_data(observer)) for path, observer in checks.observers_in(model)]
        checks.warn_of_unseen([path for path, answer in seen if answer is False])
    converted = passes.insert_quant_dequant(model, "forward", kind, debug).eval()
    if not debug:
        _to_cpu(converted)
        converted = passes.finalize(converted, kind, preserved)
    passes.simplify(converted, "forward")
    return settle(model, converted, inplace)


def _preserved(model: ScriptModule, names: Sequence[str] | None) -> list[str]:
    names = [] if names is None else names
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise QuantizationError(f"preserved_attrs must be a list of attribute names, got {names!r}")
    missing = [name for name in names if not (model._c.hasattr(name) or model._c._has_method(name))]
    if missing:
        raise ScriptError(
            f"preserved_attrs names {missing}, which the model does not have (Unknown name: {missing[0]}); "
            "name attributes, submodules or methods of the model itself"
        )
    return list(names)


def _to_cpu(model: ScriptModule) -> None:
    """Packed weights exist on the CPU, and on XPU devices, where a model stays."""
    parameters = {parameter.device.type for parameter in model.parameters()}
    buffers = {buffer.device.type for buffer in model.buffers()}
    if parameters != {"xpu"} and (parameters | buffers) - {"cpu"}:
        model.cpu()


def quantize(
    model: ScriptModule,
    qconfig_dict: Mapping[str, QConfigAny],
    run_fn: Callable[..., Any] | None = None,
    run_args: Sequence[Any] | None = None,
    inplace: bool = False,
    debug: bool = False,
    quant_type: QuantType = QuantType.STATIC,
) -> ScriptModule:
    """Prepare, calibrate if static, convert; torch.ao calls this `_quantize_jit`."""
    checks.require_script_module(model)
    calibrate = None if quant_type == QuantType.DYNAMIC else _calibration(run_fn, run_args)
    prepared = prepare(model, qconfig_dict, False, quant_type)
    if calibrate is not None:
        calibrate(prepared)
    return settle(model, convert(prepared, False, debug, quant_type), inplace)


def _calibration(run_fn: Any, run_args: Any) -> Callable[[ScriptModule], Any]:
    if not callable(run_fn):
        raise InvalidRequest(
            "Must provide calibration function for post training static quantization, got "
            f"run_fn={run_fn!r}; pass a function that runs its first argument, the prepared model, on data"
        )
    arguments = () if run_args is None else tuple(run_args)
    if not arguments:
        raise InvalidRequest(
            "Must provide calibration dataset for post training static quantization, got "
            f"run_args={run_args!r}; pass a list of what run_fn takes after the model, such as [batches]"
        )
    return lambda prepared: run_fn(prepared, *arguments)
