"""prepare_jit ... quantize_dynamic_jit: results equal torch.ao's to the bit; the caller's model is left."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

import quantization
from quantization import QConfig
from quantization.qconfig import default_per_channel_qconfig, per_channel_dynamic_qconfig
from tests.quantization.torchscript import models
from tests.quantization.torchscript.models import Convolutional, Tower, TwoMethods, compiled, oracle, silent
from tests.support import quiet_jit

MODELS = {"conv": Convolutional, "tower": Tower}
STATIC = ("default_qconfig", "default_per_channel_qconfig", "fbgemm", "qnnpack", "default_qat_qconfig")
DYNAMIC = ("default_dynamic_qconfig", "per_channel_dynamic_qconfig", "float16_dynamic_qconfig")


def _qconfig(library, name: str):
    if name in ("fbgemm", "qnnpack"):
        return library.get_default_qconfig(name)
    return getattr(getattr(library, "qconfig", library), name)


def _pair(model: str, how: str) -> tuple[torch.jit.ScriptModule, list[Tensor]]:
    made = MODELS[model]()
    batches = [made.example() for _ in range(3)]
    return compiled(made, how, batches[0]), batches


def _kinds(model) -> list[str]:
    return [node.kind() for node in model.inlined_graph.nodes()]


@pytest.fixture(autouse=True)
def _seven_bit_activations_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reduce_range")
        yield


def _require_same(ours, theirs, x: Tensor) -> None:
    assert _kinds(ours) == _kinds(theirs)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("qconfig", STATIC)
@pytest.mark.parametrize("model", MODELS)
def test_static_equals_torch_ao(model: str, qconfig: str, engine: str) -> None:
    ao, _ = oracle()
    script, batches = _pair(model, "script")
    run = (models.calibrate, [batches])
    ours = quantization.quantize_jit(script, {"": _qconfig(quantization, qconfig)}, *run)
    _require_same(ours, silent(ao.quantize_jit, script, {"": _qconfig(ao, qconfig)}, *run), batches[0])


@pytest.mark.parametrize("qconfig", DYNAMIC)
@pytest.mark.parametrize("model", MODELS)
def test_dynamic_equals_torch_ao(model: str, qconfig: str, engine: str) -> None:
    ao, _ = oracle()
    if engine in ("qnnpack", "onednn") and qconfig == "float16_dynamic_qconfig":
        pytest.skip(f"{engine} has no float16 linear")
    script, batches = _pair(model, "script")
    ours = quantization.quantize_dynamic_jit(script, {"": _qconfig(quantization, qconfig)})
    _require_same(ours, silent(ao.quantize_dynamic_jit, script, {"": _qconfig(ao, qconfig)}), batches[0])


@pytest.mark.parametrize("debug", [False, True], ids=["final", "debug"])
@pytest.mark.parametrize("qconfig", ["default_qconfig", *DYNAMIC])
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("model", MODELS)
def test_traced_and_debug_models_equal_torch_ao(model: str, how: str, qconfig: str, debug: bool) -> None:
    ao, _ = oracle()
    script, batches = _pair(model, how)
    if qconfig in DYNAMIC:
        ours = quantization.quantize_dynamic_jit(script, {"": _qconfig(quantization, qconfig)}, debug=debug)
        theirs = silent(ao.quantize_dynamic_jit, script, {"": _qconfig(ao, qconfig)}, False, debug)
    else:
        run = (models.calibrate, [batches], False, debug)
        ours = quantization.quantize_jit(script, {"": _qconfig(quantization, qconfig)}, *run)
        theirs = silent(ao.quantize_jit, script, {"": _qconfig(ao, qconfig)}, *run)
    _require_same(ours, theirs, batches[0])


def test_debug_keeps_the_float_operators() -> None:
    script, batches = _pair("tower", "script")
    qconfig_dict = {"": quantization.default_qconfig}
    debug = quantization.quantize_jit(script, qconfig_dict, models.calibrate, [batches], debug=True)
    final = quantization.quantize_jit(script, qconfig_dict, models.calibrate, [batches])
    assert "aten::linear" in _kinds(debug) and "quantized::linear" not in _kinds(debug)
    assert "quantized::linear" in _kinds(final) and "aten::linear" not in _kinds(final)


QCONFIG_DICTS = {
    "one submodule": (("inner", True),),
    "deep name": (("inner.0", True),),
    "all but one": (("", True), ("inner", False)),
    "back on below": (("", True), ("inner", False), ("inner.2", True)),
    "nothing": (("", False),),
    "empty": (),
}


@pytest.mark.parametrize("case", QCONFIG_DICTS)
@pytest.mark.parametrize("how", ["script", "trace"])
def test_qconfigs_are_inherited_and_none_ends_them(case: str, how: str) -> None:
    ao, _ = oracle()
    script, batches = _pair("tower", how)

    def chosen(qconfig):
        return {name: qconfig if on else None for name, on in QCONFIG_DICTS[case]}

    ours = quantization.quantize_dynamic_jit(script, chosen(quantization.default_dynamic_qconfig))
    theirs = silent(ao.quantize_dynamic_jit, script, chosen(ao.default_dynamic_qconfig))
    assert _kinds(ours) == _kinds(theirs)
    assert torch.equal(ours(batches[0]), theirs(batches[0]))
    quantized = _kinds(ours).count("quantized::linear_dynamic")
    expected = {
        "one submodule": 2,
        "deep name": 1,
        "all but one": 2,
        "back on below": 3,
        "nothing": 0,
        "empty": 0,
    }
    assert quantized == expected[case]


def test_different_qconfigs_side_by_side() -> None:
    ao, _ = oracle()
    script, batches = _pair("tower", "script")

    def chosen(library, per_channel):
        return {
            "": library.default_dynamic_qconfig,
            "inner": per_channel,
            "inner.0": library.float16_dynamic_qconfig,
        }

    ours = quantization.quantize_dynamic_jit(script, chosen(quantization, per_channel_dynamic_qconfig))
    theirs = silent(ao.quantize_dynamic_jit, script, chosen(ao, ao.per_channel_dynamic_qconfig))
    assert "quantized::linear_dynamic_fp16" in _kinds(ours)
    assert torch.equal(ours(batches[0]), theirs(batches[0]))


def test_a_model_is_prepared_and_converted_in_two_kinds() -> None:
    ao, _ = oracle()
    script, batches = _pair("tower", "script")

    def both(library):
        model = library.prepare_dynamic_jit(script, {"fc1": library.default_dynamic_qconfig})
        model = library.prepare_jit(model, {"inner": library.default_qconfig})
        models.calibrate(model, batches)
        return library.convert_jit(library.convert_dynamic_jit(model, debug=True))

    _require_same(both(quantization), silent(both, ao), batches[0])


def test_unknown_name_is_reported() -> None:
    script, _ = _pair("tower", "script")
    with pytest.warns(quantization.QuantizationWarning, match=r"\['inside'\]"):
        quantization.prepare_dynamic_jit(script, {"inside": quantization.default_dynamic_qconfig})


FLOWS = {
    "fuse_conv_bn_jit": lambda m, x, inplace: quantization.fuse_conv_bn_jit(m, inplace),
    "prepare_jit": lambda m, x, inplace: quantization.prepare_jit(
        m, {"": quantization.default_qconfig}, inplace
    ),
    "prepare_dynamic_jit": lambda m, x, inplace: quantization.prepare_dynamic_jit(
        m, {"": quantization.default_dynamic_qconfig}, inplace
    ),
    "quantize_jit": lambda m, x, inplace: quantization.quantize_jit(
        m, {"": quantization.default_qconfig}, models.calibrate, [[x]], inplace
    ),
    "quantize_dynamic_jit": lambda m, x, inplace: quantization.quantize_dynamic_jit(
        m, {"": quantization.default_dynamic_qconfig}, inplace
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_callers_model_is_untouched_unless_in_place(flow: str, how: str) -> None:
    script, batches = _pair("conv", how)
    before, x = models.state(script), batches[0]
    apart = FLOWS[flow](script, x, False)
    assert apart is not script
    assert models.same_state(before, models.state(script))
    with torch.no_grad():
        for tensor in apart.parameters():
            tensor.zero_()
    assert models.same_state(before, models.state(script))

    expected = FLOWS[flow](script, x, False)(x)
    in_place = FLOWS[flow](script, x, True)
    assert in_place is script
    assert torch.equal(script(x), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_convert_changes_its_argument_only_in_place(inplace: bool) -> None:
    script, batches = _pair("conv", "script")
    script.train()
    prepared = quantization.prepare_jit(script, {"": quantization.default_qconfig})
    models.calibrate(prepared, batches)
    before = models.state(prepared)
    converted = quantization.convert_jit(prepared, inplace)
    assert (converted is prepared) == inplace
    assert inplace or models.same_state(before, models.state(prepared))
    assert script.training


def test_the_result_is_apart_from_the_model_it_came_from() -> None:
    script, batches = _pair("tower", "script")
    quantized = quantization.quantize_dynamic_jit(script, {"fc1": quantization.default_dynamic_qconfig})
    expected = quantized(batches[0])
    with torch.no_grad():
        for parameter in script.parameters():
            parameter.zero_()
    assert torch.equal(quantized(batches[0]), expected)


def test_fusing_equals_torch_ao() -> None:
    ao, _ = oracle()
    script, batches = _pair("conv", "script")
    ours = quantization.fuse_conv_bn_jit(script)
    assert torch.equal(ours(batches[0]), silent(ao.fuse_conv_bn_jit, script)(batches[0]))
    assert "aten::batch_norm" not in str(ours.inlined_graph)
    torch.testing.assert_close(ours(batches[0]), script(batches[0]))


def test_preserved_attributes_survive_freezing() -> None:
    script, x = compiled(TwoMethods(), "script"), torch.randn(2, 6)
    prepared = quantization.prepare_dynamic_jit(script, {"": quantization.default_dynamic_qconfig})
    plain = quantization.convert_dynamic_jit(prepared)
    kept = quantization.convert_dynamic_jit(prepared, preserved_attrs=["names", "embed"])
    assert not hasattr(plain, "names") and not hasattr(plain, "embed")
    assert list(kept.names) == ["a", "b"]
    torch.testing.assert_close(kept.embed(x), script.embed(x), atol=0.05, rtol=0)  # it shares a layer
    assert torch.equal(kept(x), plain(x))


def test_saved_and_loaded() -> None:
    script, batches = _pair("conv", "script")
    quantized = quantization.quantize_jit(
        script, {"": default_per_channel_qconfig}, models.calibrate, [batches]
    )
    buffer = io.BytesIO()
    with quiet_jit():
        torch.jit.save(quantized, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    assert torch.equal(loaded(batches[0]), quantized(batches[0]))


def test_prepared_model_is_saved_calibrated_and_converted_elsewhere() -> None:
    script, batches = _pair("tower", "script")
    prepared = quantization.prepare_jit(script, {"": quantization.default_qconfig})
    buffer = io.BytesIO()
    with quiet_jit():
        torch.jit.save(prepared, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    for model in (prepared, loaded):
        models.calibrate(model, batches)
    x = batches[0]
    assert torch.equal(quantization.convert_jit(loaded)(x), quantization.convert_jit(prepared)(x))


class PlainObserver(nn.Module):
    """An observer that knows nothing of this library: the fields the passes read, and two methods."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.qint8
        self.qscheme = torch.per_tensor_symmetric
        self.register_buffer("largest", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max().reshape(1)))
        return x

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.largest / 127.5, torch.zeros(1, dtype=torch.int)


def test_foreign_observers_serve() -> None:
    script, batches = _pair("tower", "script")
    default = quantization.default_dynamic_qconfig
    foreign = QConfig(activation=default.activation, weight=PlainObserver)
    ours = quantization.quantize_dynamic_jit(script, {"": default})
    theirs = quantization.quantize_dynamic_jit(script, {"": foreign})
    assert torch.equal(ours(batches[0]), theirs(batches[0]))


def test_no_warning_reaches_the_user() -> None:
    script, batches = _pair("conv", "script")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantization.quantize_jit(script, {"": quantization.default_qconfig}, models.calibrate, [batches])
        quantization.quantize_dynamic_jit(script, {"": quantization.default_dynamic_qconfig})
        quantization.fuse_conv_bn_jit(script)
