"""TorchScript's own quantization passes: the only file that names them.

Each takes script modules and returns one. A pass that refuses leaves its argument half rewritten, so what it
gets is always a copy: `fold_conv_bn`, `copy_of` and `insert_quant_dequant` make one.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.jit import ScriptModule
from torch.jit._recursive import wrap_cpp_module

from quantization.errors import QuantizationError
from quantization.quant_type import QuantType

_C: Any = torch._C
_LONGEST_CAUSE = 300
# Torch asks for a bug report where an observer does not fit.
_ASSERTION = re.compile(r"^.*INTERNAL ASSERT FAILED at .*?, please report a bug to PyTorch\. ")


class ScriptError(QuantizationError, RuntimeError):
    """TorchScript refused a model, an observer or an argument; also the RuntimeError that callers expect."""


@contextlib.contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence what TorchScript says about its own future, for calls that the user did not make."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r".*torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning
        )
        yield


def cause(error: BaseException) -> str:
    """The sentence of a TorchScript error that says what is wrong, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A raise inside scripted code comes last, after TorchScript's traceback.
    raised = [line for line in lines if "Error: " in line]
    said = raised[-1] if raised else next(iter(lines), type(error).__name__)
    return _ASSERTION.sub("", said)[:_LONGEST_CAUSE].rstrip(" .,")


def _run(what: str, call: Callable[..., Any], *arguments: Any) -> ScriptModule:
    try:
        # Without gradients, folded weights stay leaves; torch warns of others when a model is moved.
        with quiet_torchscript(), torch.no_grad():
            return wrap_cpp_module(call(*arguments))
    except QuantizationError:
        raise
    except (RuntimeError, TypeError, torch.jit.Error) as error:
        raise ScriptError(
            f"TorchScript could not {what}: {cause(error)}. Mostly an observer does not fit what it "
            "observes: take those of default_qconfig (static) or default_dynamic_qconfig (dynamic), or "
            "give the submodule None"
        ) from error


def copy_of(module: ScriptModule, without_methods: Sequence[str] = ()) -> ScriptModule:
    """A deep copy of class and data, so that rewriting its graphs does not reach `module`."""
    call = _C._hack_do_not_use_clone_module_with_class
    return _run("copy the model", call, module._c, list(without_methods), [])


def fold_conv_bn(module: ScriptModule) -> ScriptModule:
    """A copy in which each convolution followed by a batch norm has taken over its running statistics."""
    return _run("fold batch norms", _C._jit_pass_fold_convbn, module._c)


def inline(module: ScriptModule, method: str) -> None:
    """Replace the calls in a method's graph by what they call."""
    _C._jit_pass_inline(getattr(module, method).graph)


def simplify(module: ScriptModule, method: str) -> None:
    """Compute constants beforehand and drop what nobody reads."""
    graph = getattr(module, method).graph
    _C._jit_pass_constant_propagation(graph)
    _C._jit_pass_dce(graph)


def replace_body(module: ScriptModule, method: str, by: str) -> None:
    """Let a method do what another one of the same signature does; its own signature and defaults stay."""
    graph, body = getattr(module, method).graph, getattr(module, by).graph
    graph.setInsertPoint(graph.return_node())
    for i, value in enumerate(graph.insertGraph(body, list(graph.inputs()))):
        graph.return_node().replaceInput(i, value)
    _C._jit_pass_dce(graph)


def insert_observers(
    module: ScriptModule, method: str, qconfigs: Mapping[str, Any], kind: QuantType
) -> ScriptModule:
    """Observe weights and activations in a method and in what it calls; rewrites `module`."""
    call = _C._jit_pass_insert_observers
    return _run("insert observers", call, module._c, method, dict(qconfigs), True, int(kind))


def insert_quant_dequant(module: ScriptModule, method: str, kind: QuantType, debug: bool) -> ScriptModule:
    """A copy in which each observer has become a quantize and a dequantize with the qparams it found."""
    call = _C._jit_pass_insert_quant_dequant
    return _run("replace the observers", call, module._c, method, False, debug, int(kind))


def finalize(module: ScriptModule, kind: QuantType, preserved: Sequence[str]) -> ScriptModule:
    """Fuse dequantize, operator and quantize into quantized operators, pack the weights, and freeze."""
    call = _C._jit_pass_quant_finalize
    return _run("put quantized operators in place", call, module._c, int(kind), list(preserved))


def add_observe_methods(
    module: ScriptModule, method: str, qconfigs: Mapping[str, Any], kind: QuantType
) -> ScriptModule:
    """Add `observe_<method>` and `reset_observers_<method>`; rewrites `module`."""
    call = _C._jit_pass_insert_observer_method_for_ondevice_ptq
    return _run("add the observing method", call, module._c, method, dict(qconfigs), True, int(kind))


def add_quantize_method(module: ScriptModule, method: str, kind: QuantType, debug: bool) -> ScriptModule:
    """Add `quantize_<method>` to a copy of `module`, which has `observe_<method>`."""
    call = _C._jit_pass_insert_quant_dequant_for_ondevice_ptq
    return _run("add the quantizing method", call, module._c, f"observe_{method}", False, debug, int(kind))


def add_quantized_method(module: ScriptModule, method: str, kind: QuantType) -> ScriptModule:
    """Split `quantize_<method>` into packing and `quantized_<method>`, which runs; rewrites `module`."""
    call = _C._jit_pass_quant_finalize_for_ondevice_ptq
    # The third argument is the method, whatever the binding calls it.
    return _run("add the quantized method", call, module._c, int(kind), f"quantize_{method}")


def finalize_on_device(module: Any, method: str) -> None:
    """Let the lite interpreter's runtime finalize its module in place."""
    _C._quantize_ondevice_ptq_dynamic(module._c, method)


def has_runtime_helper() -> bool:
    """Whether this torch was built with the lite interpreter's on-device quantization."""
    return hasattr(_C, "_quantize_ondevice_ptq_dynamic")
