"""The device's part: one result on a script module and in the lite interpreter, once, or a clear error."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.jit.mobile import _load_for_lite_interpreter
from torch.utils.bundled_inputs import bundle_inputs

import quantization
from quantization import QuantizationError
from quantization.torchscript import (
    ScriptError,
    device,
    finalize,
    passes,
    prepare_ondevice_dynamic_jit,
    quantize_ondevice_dynamic_jit,
)
from tests.quantization.torchscript import models
from tests.quantization.torchscript.models import EVERYWHERE, QCONFIGS, Tower, TwoMethods, compiled
from tests.support import quiet_jit

HELPERS = ["reset_observers_forward", "observe_forward", "quantize_forward", "quantized_forward"]

pytestmark = pytest.mark.filterwarnings("ignore:.*qnnpack incorrectly ignores reduce_range")


def _shipped(model: Any, *inputs: Any, method: str = "forward") -> bytes:
    """The file of a model for the lite interpreter, with one bundled input if one is given."""
    ready = quantize_ondevice_dynamic_jit(model, EVERYWHERE, method)
    with quiet_jit():
        return models.lite_file(bundle_inputs(ready, [inputs]) if inputs else ready)


def _lite(file: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Lite Interpreter is deprecated")
        return _load_for_lite_interpreter(io.BytesIO(file))


def _plain(file: bytes) -> Any:
    with quiet_jit():
        return torch.jit.load(io.BytesIO(file))


LOADERS = {"lite": _lite, "plain": _plain}


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_finalized_from_a_file_equals_off_device(load, how: str, qconfig: str, engine: str) -> None:
    x = Tower.example()
    script = compiled(Tower(), how, x)
    ready = quantize_ondevice_dynamic_jit(script, {"": QCONFIGS[qconfig]})
    with quiet_jit():
        module = load(models.lite_file(bundle_inputs(ready, [(torch.zeros(1, 16),)])))
    expected = quantization.quantize_dynamic_jit(script, {"": QCONFIGS[qconfig]})(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finalize(module) is module
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x), expected)  # and again: packing keeps what running needs


def test_finalized_module_keeps_one_method_and_can_be_saved() -> None:
    script, x = compiled(Tower(), "script"), Tower.example()
    module = quantize_ondevice_dynamic_jit(script, EVERYWHERE)
    assert finalize(module, "forward", (x,)) is module
    assert module._c._method_names() == ["forward"]
    assert torch.equal(_plain(models.lite_file(module))(x), module(x))
    assert torch.equal(_lite(models.lite_file(module))(x), module(x))
    float_size, int8_size = (sum(t.numel() for t in m.state_dict().values()) for m in (script, module))
    assert int8_size < float_size / 5  # biases and observers are left


def test_another_method_with_a_default_argument() -> None:
    script, x = compiled(TwoMethods(), "script"), torch.randn(3, 6)
    module = quantize_ondevice_dynamic_jit(script, EVERYWHERE, "embed")
    schema = str(module._c._get_method("embed").schema).partition("self")[2]
    finalize(module, "embed", (x,))
    assert str(module._c._get_method("embed").schema).partition("self")[2] == schema
    torch.testing.assert_close(module.embed(x), script.embed(x), atol=0.1, rtol=0)
    torch.testing.assert_close(module.embed(x, 1.0), 0.5 * module.embed(x))
    assert not module._c._has_method("quantized_embed")


class Structured(nn.Module):
    """Arguments and results that are not tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, xs: dict[str, Tensor], which: list[str], bias: Tensor | None = None
    ) -> tuple[Tensor, int]:
        total = self.fc(xs[which[0]] + xs[which[1]])
        return total if bias is None else total + bias, len(which)


def test_structured_arguments() -> None:
    script = compiled(Structured(), "script")
    arguments = ({"a": torch.randn(2, 4), "b": torch.randn(2, 4)}, ["a", "b"])
    expected = quantization.quantize_dynamic_jit(script, EVERYWHERE)(*arguments)
    module = finalize(quantize_ondevice_dynamic_jit(script, EVERYWHERE), inputs=arguments)
    got = module(*arguments)
    assert torch.equal(got[0], expected[0]) and got[1] == 2
    assert torch.equal(module(*arguments, torch.ones(4))[0], expected[0] + 1)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_second_finalize_is_refused(load) -> None:
    module = load(_shipped(compiled(Tower(), "script"), torch.zeros(1, 16)))
    finalize(module)
    expected = module(torch.ones(1, 16))
    with pytest.raises(
        RuntimeError, match=r"none of the four helpers for 'forward'\. Either it was finalized"
    ):
        finalize(module)
    assert torch.equal(module(torch.ones(1, 16)), expected)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_method_nobody_prepared_is_refused(load) -> None:
    module = load(_shipped(compiled(Tower(), "script"), torch.zeros(1, 16)))
    with pytest.raises(ScriptError, match="must have reset_observers_embed method"):
        finalize(module, "embed")


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("missing", HELPERS)
def test_a_missing_helper_is_named(load, missing: str) -> None:
    ready = quantize_ondevice_dynamic_jit(compiled(Tower(), "script"), EVERYWHERE)
    module = load(models.lite_file(passes.copy_of(ready, without_methods=[missing])))
    with pytest.raises(ScriptError, match=rf"PTQ ready module must have {missing} method, but has the other"):
        finalize(module)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_missing_bundled_inputs_are_named(load) -> None:
    module = load(_shipped(compiled(Tower(), "script")))
    with pytest.raises(ScriptError, match=r"must have get_all_bundled_inputs method: bundle one input"):
        finalize(module)


def test_prepared_but_not_converted_is_refused() -> None:
    prepared = prepare_ondevice_dynamic_jit(compiled(Tower(), "script"), EVERYWHERE)
    with pytest.raises(ScriptError, match="must have quantize_forward method"):
        finalize(prepared, inputs=(Tower.example(),))


BAD_INPUTS = {
    "none": ((), r"forward takes 1 arguments \(x: Tensor\), but the inputs are 0"),
    "too many": ((torch.zeros(1, 16), 2), r"forward takes 1 arguments \(x: Tensor\), but the inputs are 2"),
    "a bare tensor": (
        torch.zeros(1, 16),
        r"must be a tuple .*got Tensor; for a single tensor pass \(tensor,\)",
    ),
    "the wrong shape": ((torch.zeros(1, 3),), r"the helpers of 'forward' failed on the inputs: .*shapes"),
    "the wrong type": (("x",), r"the helpers of 'forward' failed on the inputs"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_leave_the_module(case: str) -> None:
    module, x = quantize_ondevice_dynamic_jit(compiled(Tower(), "script"), EVERYWHERE), Tower.example()
    before = models.state(module)
    inputs, message = BAD_INPUTS[case]
    with pytest.raises(QuantizationError, match=message):
        finalize(module, inputs=inputs)
    assert models.same_state(before, models.state(module))
    finalize(module, inputs=(x,))


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_bundled_inputs_of_the_wrong_shape_leave_the_module(load) -> None:
    x = Tower.example()
    module = load(_shipped(compiled(Tower(), "script"), torch.zeros(1, 3)))
    before = module(x)
    with pytest.raises(ScriptError, match="shapes"):
        finalize(module)
    assert torch.equal(module(x), before)


def test_the_lite_interpreter_takes_its_inputs_from_the_file() -> None:
    module = _lite(_shipped(compiled(Tower(), "script"), torch.zeros(1, 16)))
    with pytest.raises(QuantizationError, match="takes the first bundled inputs of the file"):
        finalize(module, inputs=(torch.zeros(1, 16),))


def test_a_torch_without_the_helper_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _lite(_shipped(compiled(Tower(), "script"), torch.zeros(1, 16)))
    monkeypatch.setattr(device.passes, "has_runtime_helper", lambda: False)
    with pytest.raises(NotImplementedError, match=r"load the same file with torch\.jit\.load"):
        finalize(module)


def test_an_eager_module_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"needs a script module, got <class .*Tower'>"):
        finalize(Tower())


class SelfByAnotherName(nn.Module):
    """The lite interpreter cannot replace its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(this, x):
        return this.fc(x)


@pytest.mark.filterwarnings("ignore::quantization.QuantizationWarning")
def test_self_by_another_name() -> None:
    script, x = compiled(SelfByAnotherName(), "script"), torch.zeros(1, 4)
    file = _shipped(script, x)
    assert torch.equal(finalize(_plain(file))(x), quantization.quantize_dynamic_jit(script, EVERYWHERE)(x))
    with pytest.raises(ScriptError, match="first parameter must be called 'self'"):
        finalize(_lite(file))
