"""The server's part of on-device quantization: four methods, weights observed, packed weights empty."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import quantization
from observers import MinMaxObserver, PlaceholderObserver
from quantization import QConfig, QuantizationError
from quantization.torchscript import (
    convert_ondevice_dynamic_jit,
    ondevice,
    prepare_ondevice_dynamic_jit,
    quantize_ondevice_dynamic_jit,
)
from tests.quantization.torchscript import models
from tests.quantization.torchscript.models import (
    EVERYWHERE,
    QCONFIGS,
    Convolutional,
    Tower,
    TwoMethods,
    compiled,
    oracle,
    silent,
)
from tests.support import quiet_jit


def _run(model, method: str, *arguments):
    """What the device does, by hand."""
    getattr(model, f"reset_observers_{method}")()
    getattr(model, f"observe_{method}")(*arguments)
    getattr(model, f"quantize_{method}")(*arguments)
    return getattr(model, f"quantized_{method}")(*arguments)


def _theirs(qconfig: str):
    ao, jit = oracle()
    return jit, {
        "": {"tensor": ao.default_dynamic_qconfig, "channel": ao.per_channel_dynamic_qconfig}[qconfig]
    }


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore:.*qnnpack incorrectly ignores reduce_range")
def test_outputs_equal_torch_ao_and_off_device_quantization(how: str, qconfig: str, engine: str) -> None:
    x = Tower.example()
    script = compiled(Tower(), how, x)
    jit, theirs = _theirs(qconfig)
    ours = _run(quantize_ondevice_dynamic_jit(script, {"": QCONFIGS[qconfig]}), "forward", x)
    off_device = quantization.quantize_dynamic_jit(script, {"": QCONFIGS[qconfig]})(x)
    oracle_model = silent(jit._quantize_ondevice_dynamic_jit, compiled(Tower(), how, x), theirs)
    oracle_model.load_state_dict(script.state_dict(), strict=False)
    assert torch.equal(ours, off_device)
    assert torch.equal(ours, _run(oracle_model, "forward", x))


class Repeating(nn.Module):
    """A layer called twice, a tied weight, and a layer called in a loop too, which stays float there."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.loop = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        x = self.tied(self.twice(torch.relu(self.twice(x))))
        for _ in range(2):
            x = self.loop(x)
        return self.loop(x)


def test_a_layer_called_again_keeps_its_weight_until_then() -> None:
    script, x = compiled(Repeating(), "script"), torch.randn(3, 4)
    shipped = quantize_ondevice_dynamic_jit(script, EVERYWHERE)
    assert str(shipped.quantized_forward.graph).count("quantized::linear_dynamic") == 4
    torch.testing.assert_close(_run(shipped, "forward", x), script(x), atol=0.05, rtol=0)
    assert shipped.twice.weight.numel() == 0 and shipped.loop.weight.numel() == 16


def test_nested_batch_norms_are_folded_as_off_device() -> None:
    x = Convolutional.example()
    script = compiled(Convolutional(), "script")
    shipped = quantize_ondevice_dynamic_jit(script, EVERYWHERE)
    assert "batch_norm" not in str(shipped.quantized_forward.graph)
    torch.testing.assert_close(shipped(x), script(x))
    off_device = quantization.quantize_dynamic_jit(script, EVERYWHERE)(x)
    assert torch.equal(_run(shipped, "forward", x), off_device)


def test_the_methods_and_what_is_in_them() -> None:
    script = compiled(Tower(), "script")
    prepared = prepare_ondevice_dynamic_jit(script, EVERYWHERE)
    assert {"observe_forward", "reset_observers_forward"} <= set(prepared._c._method_names())
    assert not prepared._c._has_method("quantize_forward")
    observe = str(prepared.observe_forward.graph)
    assert (
        observe.count('prim::CallMethod[name="forward"]') == 4
    )  # one per weight; activations are not observed
    assert "prim::CallMethod" not in str(prepared.forward.graph)

    converted = convert_ondevice_dynamic_jit(prepared, "forward")
    assert {"quantize_forward", "quantized_forward"} <= set(converted._c._method_names())
    quantize, quantized = str(converted.quantize_forward.graph), str(converted.quantized_forward.graph)
    assert quantize.count("quantized::linear_prepack") == 4 and "quantized::linear_dynamic" not in quantize
    assert quantized.count("quantized::linear_dynamic") == 4 and "prepack" not in quantized


def test_packed_weights_are_empty_until_quantized_and_float_ones_after() -> None:
    shipped = quantize_ondevice_dynamic_jit(compiled(Tower(), "script"), EVERYWHERE)
    x = Tower.example()
    packed = [f"_quantize_forward_ondevice_ptq_packed_weight_{i}" for i in range(4)]
    weights = [name for name in shipped.state_dict() if name.endswith("weight")]
    assert all(shipped._c.hasattr(name) for name in packed)
    with pytest.raises(RuntimeError):
        shipped.quantized_forward(x)
    assert all(shipped.state_dict()[name].numel() for name in weights)
    _run(shipped, "forward", x)
    assert [shipped.state_dict()[name].numel() for name in weights] == [0] * 4
    with pytest.raises(RuntimeError):
        shipped(x)


def test_another_method_and_then_a_second_one() -> None:
    script, x = compiled(TwoMethods(), "script"), torch.randn(3, 6)
    both = quantize_ondevice_dynamic_jit(
        quantize_ondevice_dynamic_jit(script, EVERYWHERE, "embed"), EVERYWHERE
    )
    assert torch.equal(both(x), script(x)) and torch.equal(both.embed(x), script.embed(x))
    torch.testing.assert_close(_run(both, "embed", x, 3.0), script.embed(x, 3.0), atol=0.1, rtol=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_callers_model_is_untouched_unless_in_place(how: str, inplace: bool) -> None:
    x = Tower.example()
    script = compiled(Tower(), how, x)
    before, expected = models.state(script), script(x)
    shipped = quantize_ondevice_dynamic_jit(script, EVERYWHERE, inplace=inplace)
    assert (shipped is script) == inplace
    assert torch.equal(script(x), expected)
    if not inplace:
        _run(shipped, "forward", x)
        assert models.same_state(before, models.state(script))


@pytest.mark.parametrize("others", [{"inner": None}, {"inner": QCONFIGS["channel"]}])
def test_a_submodule_cannot_differ(others) -> None:
    """The pass ignores it silently, as torch.ao does: here it is an error."""
    script = compiled(Tower(), "script")
    quantize_ondevice_dynamic_jit(script, {**EVERYWHERE, "inner": EVERYWHERE[""]})
    with pytest.raises(QuantizationError, match=r"gives \['inner'\] a qconfig of their own"):
        quantize_ondevice_dynamic_jit(script, {**EVERYWHERE, **others})


def test_shipped_by_file() -> None:
    script, x = compiled(Tower(), "script"), Tower.example()
    buffer = io.BytesIO()
    with quiet_jit():
        torch.jit.save(quantize_ondevice_dynamic_jit(script, EVERYWHERE), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    assert torch.equal(_run(loaded, "forward", x), quantization.quantize_dynamic_jit(script, EVERYWHERE)(x))


def test_the_shipped_file_holds_the_weights_once() -> None:
    wide = nn.Sequential(*(nn.Linear(300, 300) for _ in range(4)))
    script = compiled(wide, "script")
    shipped = quantize_ondevice_dynamic_jit(script, EVERYWHERE)
    float_size, shipped_size = len(models.lite_file(script)), len(models.lite_file(shipped))
    assert shipped_size < 1.05 * float_size


BAD = {
    "an eager module": (Tower, {}, ValueError, r"input must be a script module, got: <class .*Tower'>"),
    "an absent method": (
        TwoMethods,
        {"method_name": "encode"},
        RuntimeError,
        r"Method 'encode' is not defined.*embed",
    ),
    "a method that is no name": (TwoMethods, {"method_name": 3}, ValueError, "method_name must be a str"),
    "a helper": (TwoMethods, {"method_name": "observe_forward"}, RuntimeError, "is not defined"),
    "a type as key": (
        Tower,
        {"qconfig_dict": {nn.Linear: None}},
        ValueError,
        r"only contain names\(str\) as keys",
    ),
    "float16": (
        Tower,
        {"qconfig_dict": {"": quantization.float16_dynamic_qconfig}},
        QuantizationError,
        r"is for torch\.float16 and",
    ),
    "unsigned weights": (
        Tower,
        {"qconfig_dict": {"": QConfig(PlaceholderObserver, MinMaxObserver)}},
        QuantizationError,
        r"qconfig_dict\[''\] is for torch\.quint8",
    ),
    "float zero points": (
        Tower,
        {"qconfig_dict": {"": quantization.float_qparams_weight_only_qconfig}},
        QuantizationError,
        "on-device quantization packs linear weights as torch.qint8",
    ),
    "a weight observer without reset": (
        Tower,
        {
            "qconfig_dict": {
                "": QConfig(PlaceholderObserver, PlaceholderObserver.with_args(dtype=torch.qint8))
            }
        },
        RuntimeError,
        "Method 'reset_min_max_vals' is not defined",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("call", [quantize_ondevice_dynamic_jit, prepare_ondevice_dynamic_jit])
def test_bad_input_is_refused(call, case: str) -> None:
    made, arguments, kind, message = BAD[case]
    model = made() if case == "an eager module" else compiled(made(), "script")
    before = None if case == "an eager module" else models.state(model)
    with pytest.raises(kind, match=message) as caught:
        call(model, **{"qconfig_dict": EVERYWHERE, "inplace": True, **arguments})
    assert isinstance(caught.value, QuantizationError)
    assert before is None or models.same_state(before, models.state(model))


def test_steps_out_of_order_are_refused() -> None:
    script = compiled(TwoMethods(), "script")
    with pytest.raises(
        RuntimeError, match="Method 'observe_forward' is not defined: the model is not prepared"
    ):
        convert_ondevice_dynamic_jit(script, "forward")
    prepared = prepare_ondevice_dynamic_jit(script, EVERYWHERE)
    with pytest.raises(RuntimeError, match="prepared for on-device quantization of 'forward' already"):
        prepare_ondevice_dynamic_jit(prepared, EVERYWHERE)
    with pytest.raises(QuantizationError, match="is a helper of on-device quantization"):
        prepare_ondevice_dynamic_jit(prepared, EVERYWHERE, "observe_forward")
    with pytest.raises(AssertionError, match="name of the method itself"):
        convert_ondevice_dynamic_jit(prepared, "observe_forward")
    with pytest.raises(AssertionError, match="on-device quantization is dynamic, got quant_type=STATIC"):
        ondevice.convert_ondevice_jit(prepared, "forward")
    converted = convert_ondevice_dynamic_jit(prepared, "forward")
    with pytest.raises(RuntimeError, match="'forward' is converted already"):
        convert_ondevice_dynamic_jit(converted, "forward")


def test_nothing_to_quantize_is_reported() -> None:
    with pytest.warns(quantization.QuantizationWarning, match="nothing in forward is quantized"):
        quantize_ondevice_dynamic_jit(compiled(Tower(), "script"), {"": None})


class SelfByAnotherName(nn.Module):
    """The lite interpreter cannot replace its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(this, x):
        return this.fc(x)


def test_the_name_of_self_is_reported() -> None:
    with pytest.warns(quantization.QuantizationWarning, match="first parameter of forward is called 'this'"):
        quantize_ondevice_dynamic_jit(compiled(SelfByAnotherName(), "script"), EVERYWHERE)
