"""The device's part of on-device quantization: run the server's helpers once, and keep the result.

This is what `PTQQuanizationHelper::quantize_dynamic` of the mobile runtime does in C++. Here it also works on
a plain script module, so that the whole flow can be developed and tested without a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.jit import ScriptModule
from torch.jit.mobile import LiteScriptModule

from quantization.errors import QuantizationError, Unsupported
from quantization.torchscript import passes
from quantization.torchscript.graph import settle
from quantization.torchscript.ondevice import HELPERS
from quantization.torchscript.passes import ScriptError

AnyScriptModule = TypeVar("AnyScriptModule", ScriptModule, LiteScriptModule)
_BUNDLED = "get_all_bundled_inputs"


def finalize(
    module: AnyScriptModule, method_name: str = "forward", inputs: Sequence[Any] | None = None
) -> AnyScriptModule:
    """Quantize a method of a shipped module in place, and return the module.

    Runs `reset_observers_<m>`, `observe_<m>` and `quantize_<m>` on `inputs` (the arguments of one call; by
    default the first bundled ones), then puts `quantized_<m>` in the place of `<m>` and drops the helpers.
    `module` comes from `torch.jit.load` or from `torch.jit.mobile._load_for_lite_interpreter`; the latter
    goes through the runtime's own helper, which reads its inputs from the file.

    >>> import warnings
    >>> from quantization import default_dynamic_qconfig
    >>> from quantization.torchscript import quantize_ondevice_dynamic_jit
    >>> warnings.simplefilter("ignore", DeprecationWarning)
    >>> model = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    >>> shipped = quantize_ondevice_dynamic_jit(model, {"": default_dynamic_qconfig})
    >>> finalized = finalize(shipped, inputs=(torch.randn(1, 4),))
    >>> "quantized::linear_dynamic" in finalized.graph.str(), hasattr(finalized, "quantize_forward")
    (True, False)
    """
    if isinstance(module, LiteScriptModule):
        _finalize_lite(module, method_name, inputs)
        return module
    if isinstance(module, ScriptModule):
        return settle(module, _finalized(module, method_name, inputs), inplace=True)
    raise QuantizationError(
        f"finalize needs a script module, got {type(module)}: load the shipped file with torch.jit.load, or "
        "with torch.jit.mobile._load_for_lite_interpreter"
    )


def _require_helpers(has: Any, method: str) -> None:
    """Name the missing method, and say whether none or only some are there."""
    missing = [prefix + method for prefix in HELPERS if not has(prefix + method)]
    if len(missing) == len(HELPERS):
        raise ScriptError(
            f"PTQ ready module must have {missing[0]} method; it has none of the four helpers for "
            f"{method!r}. Either it was finalized already, which can be done once, or it was not made by "
            "quantize_ondevice_dynamic_jit for that method"
        )
    if missing:
        raise ScriptError(
            f"PTQ ready module must have {missing[0]} method, but has the other helpers for {method!r}: "
            "make it anew with quantize_ondevice_dynamic_jit (a method without linear layers gets no "
            "observers to reset)"
        )
    if not has(method):
        raise ScriptError(
            f"PTQ ready module must have {method} method, which quantized_{method} is to replace"
        )


def _require_bundled(has: Any) -> None:
    if not has(_BUNDLED):
        raise ScriptError(
            f"PTQ ready module must have {_BUNDLED} method: bundle one input before shipping, with "
            "torch.utils.bundled_inputs.bundle_inputs(model, [(bundle_randn(1, 8),)])"
        )


def _finalize_lite(module: LiteScriptModule, method: str, inputs: Sequence[Any] | None) -> None:
    if not passes.has_runtime_helper():
        raise Unsupported(
            "this torch was built without the lite interpreter's on-device quantization: load the same file "
            "with torch.jit.load and finalize that"
        )
    _require_helpers(module.find_method, method)
    _require_bundled(module.find_method)
    if inputs is not None:
        raise QuantizationError(
            "the lite interpreter's helper takes the first bundled inputs of the file: call finalize "
            "without inputs, or load the file with torch.jit.load"
        )
    _first_bundled(module.run_method(_BUNDLED))
    try:
        passes.finalize_on_device(module, method)
    except RuntimeError as error:
        hint = "its bundled inputs must fit the method, whose first parameter must be called 'self'"
        raise ScriptError(
            f"the runtime could not finalize {method!r}: {passes.cause(error)}; {hint}"
        ) from error


def _first_bundled(bundled: Any) -> tuple[Any, ...]:
    if not bundled:
        raise ScriptError(
            "the list of bundled inputs is empty: bundle at least one input with "
            "torch.utils.bundled_inputs.bundle_inputs"
        )
    return tuple(bundled[0])


def _finalized(module: ScriptModule, method: str, inputs: Sequence[Any] | None) -> ScriptModule:
    """A finalized copy of a script module."""
    _require_helpers(module._c._has_method, method)
    arguments = _arguments(module, inputs)
    _require_arity(module, method, arguments)
    _require_same_schema(module, method)
    # On a copy, because quantize_<m> empties the float weights. Off mobile builds torch keeps the weights it
    # packs, so nothing corresponds to the helper's setReleaseWeightsWhenPrepacking(false) here.
    copy = passes.copy_of(module)
    try:
        getattr(copy, f"reset_observers_{method}")()
        getattr(copy, f"observe_{method}")(*arguments)
        getattr(copy, f"quantize_{method}")(*arguments)
    except RuntimeError as error:
        raise ScriptError(
            f"the helpers of {method!r} failed on the inputs: {passes.cause(error)}; pass or bundle inputs "
            f"that {method} accepts. The module is as it was"
        ) from error
    return _replaced(copy, method)


def _arguments(module: ScriptModule, inputs: Sequence[Any] | None) -> tuple[Any, ...]:
    if inputs is None:
        _require_bundled(module._c._has_method)
        return _first_bundled(getattr(module, _BUNDLED)())
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise QuantizationError(
            f"inputs must be a tuple with the arguments of one call, got {type(inputs).__name__}; for a "
            "single tensor pass (tensor,)"
        )
    return tuple(inputs)


def _require_arity(module: ScriptModule, method: str, arguments: tuple[Any, ...]) -> None:
    declared = module._c._get_method(f"observe_{method}").schema.arguments[1:]
    least = sum(not argument.has_default_value() for argument in declared)
    if not least <= len(arguments) <= len(declared):
        names = ", ".join(f"{argument.name}: {argument.type}" for argument in declared)
        raise ScriptError(
            f"{method} takes {least if least == len(declared) else f'{least} to {len(declared)}'} arguments "
            f"({names}), but the inputs are {len(arguments)}: pass or bundle one tuple with all of them"
        )


def _signature(module: ScriptModule, method: str) -> tuple[list[str], list[str]]:
    """Arguments after self, and returns, as text."""
    schema = module._c._get_method(method).schema
    defaults = (f" = {a.default_value!r}" if a.has_default_value() else "" for a in schema.arguments[1:])
    arguments = [
        f"{a.name}: {a.type}{default}" for a, default in zip(schema.arguments[1:], defaults, strict=True)
    ]
    return arguments, [str(returned.type) for returned in schema.returns]


def _require_same_schema(module: ScriptModule, method: str) -> None:
    original, quantized = _signature(module, method), _signature(module, f"quantized_{method}")
    if original != quantized:
        raise ScriptError(
            f"quantized_{method} cannot take the place of {method}: it has the signature {quantized}, "
            f"expected {original}; make the module anew with quantize_ondevice_dynamic_jit"
        )


def _replaced(module: ScriptModule, method: str) -> ScriptModule:
    """A copy where `method` does what `quantized_<method>` did, without the helpers."""
    passes.replace_body(module, method, f"quantized_{method}")
    return passes.copy_of(module, without_methods=[prefix + method for prefix in HELPERS])
