"""Bad input: one clear error, of a type that torch.ao's callers catch, and a model that is as it was."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import quantization
from observers import MinMaxObserver, NoopObserver, PlaceholderObserver
from quantization import QConfig, QuantizationError
from quantization.torchscript import ScriptError, graph
from tests.quantization.torchscript import models
from tests.quantization.torchscript.models import Convolutional, Tower, TwoMethods, compiled

DYNAMIC = quantization.default_dynamic_qconfig
STATIC = quantization.default_qconfig
BYTE = PlaceholderObserver.with_args(dtype=torch.float, custom_op_name="embedding_bag_byte")


class WithoutForward(nn.Module):
    """A module that has another method only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    @torch.jit.export
    def embed(self, x):
        return self.fc(x)


class Uncompilable(MinMaxObserver):
    """An observer that uses what TorchScript does not have."""

    def forward(self, x):
        return [x for _ in globals()][0]  # noqa: RUF015


PREPARERS = {
    "prepare_jit": lambda m, q: quantization.prepare_jit(m, q),
    "prepare_dynamic_jit": lambda m, q: quantization.prepare_dynamic_jit(m, q),
    "quantize_jit": lambda m, q: quantization.quantize_jit(m, q, models.calibrate, [[torch.randn(2, 16)]]),
    "quantize_dynamic_jit": lambda m, q: quantization.quantize_dynamic_jit(m, q),
}
OTHERS = {
    "convert_jit": quantization.convert_jit,
    "convert_dynamic_jit": quantization.convert_dynamic_jit,
    "fuse_conv_bn_jit": quantization.fuse_conv_bn_jit,
}


@pytest.mark.parametrize("call", [*PREPARERS.values(), *OTHERS.values()], ids=[*PREPARERS, *OTHERS])
def test_an_eager_module_is_refused(call) -> None:
    arguments = ({"": STATIC},) if call in PREPARERS.values() else ()
    with pytest.raises(
        ValueError, match=r"input must be a script module, got: <class .*Tower'>.*torch\.jit\.script"
    ):
        call(Tower(), *arguments)


@pytest.mark.parametrize("call", PREPARERS.values(), ids=PREPARERS)
def test_a_module_without_forward_is_refused(call) -> None:
    script = compiled(WithoutForward(), "script")
    with pytest.raises(ValueError, match=r"input script module does not have forward method.*it has: embed"):
        call(script, {"": STATIC})


@pytest.mark.parametrize("call", [quantization.convert_jit, quantization.convert_dynamic_jit])
def test_converting_a_module_without_forward_is_a_runtime_error(call) -> None:
    with pytest.raises(RuntimeError, match="Method 'forward' is not defined"):
        call(compiled(WithoutForward(), "script"))


BAD_DICTS = {
    "a type as key": ({nn.Linear: STATIC}, r"only contain names\(str\) as keys, got <class .*Linear"),
    "no dictionary": (STATIC, r"must be a dict such as \{'': qconfig\}, got QConfig"),
    "None": (None, r"must be a dict such as .*, got NoneType"),
    "a number as qconfig": ({"": 3}, r"qconfig_dict\[''\] must be a QConfig or None, got int"),
    "no weight": (
        {"": QConfig(MinMaxObserver, None)},
        r"qconfig\.weight must be an observer class.*got None",
    ),
    "not an observer": ({"": QConfig(nn.Identity, MinMaxObserver)}, r"makes Identity, which has no dtype"),
    "not compilable": (
        {"": QConfig(Uncompilable, MinMaxObserver)},
        r"makes Uncompilable, which TorchScript cannot",
    ),
}


@pytest.mark.parametrize("case", BAD_DICTS)
@pytest.mark.parametrize("call", PREPARERS.values(), ids=PREPARERS)
def test_a_bad_qconfig_dict_is_refused(call, case: str) -> None:
    script = compiled(Tower(), "script")
    before = models.state(script)
    given, message = BAD_DICTS[case]
    with pytest.raises(QuantizationError, match=message):
        call(script, given)
    assert models.same_state(before, models.state(script))


def test_script_qconfig_of_none_says_who_takes_none() -> None:
    with pytest.raises(QuantizationError, match="script_qconfig_dict passes None on"):
        quantization.script_qconfig(None)


@pytest.mark.parametrize("run_fn, run_args, message", [
    (None, [[]], "Must provide calibration function"),
    ("calibrate", [[]], "Must provide calibration function.*got run_fn='calibrate'"),
    (models.calibrate, [], "Must provide calibration dataset"),
    (models.calibrate, None, "Must provide calibration dataset"),
])  # fmt: skip
def test_calibration_is_required(run_fn, run_args, message: str) -> None:
    script = compiled(Tower(), "script")
    with pytest.raises(AssertionError, match=message) as caught:
        quantization.quantize_jit(script, {"": STATIC}, run_fn, run_args)
    assert isinstance(caught.value, QuantizationError)


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
def test_the_placeholder_that_crashes_torch_is_refused(dtype: torch.dtype) -> None:
    script = compiled(Tower(), "script")
    before = models.state(script)
    fatal = QConfig(PlaceholderObserver.with_args(dtype=dtype), quantization.default_weight_observer)
    for inplace in (False, True):
        with pytest.raises(QuantizationError, match=rf"{dtype} with is_dynamic=False.*is_dynamic=True"):
            quantization.prepare_dynamic_jit(script, {"inner": fatal}, inplace)
    assert models.same_state(before, models.state(script))


def test_the_placeholder_that_crashes_torch_is_refused_when_converting() -> None:
    """A model prepared elsewhere may hold it."""
    script = compiled(Tower(), "script")
    scripted = graph.script_qconfig_dict(
        {"": QConfig(PlaceholderObserver.with_args(dtype=torch.quint8), MinMaxObserver)}
    )
    prepared = graph.passes.insert_observers(
        graph.passes.fold_conv_bn(script), "forward", scripted, quantization.QuantType.DYNAMIC
    )
    with pytest.raises(QuantizationError, match="is_dynamic=False"):
        quantization.convert_dynamic_jit(prepared)


@pytest.mark.parametrize("prepare", [quantization.prepare_jit, quantization.prepare_dynamic_jit])
def test_an_embedding_placeholder_on_other_weights_is_refused(prepare) -> None:
    script = compiled(Tower(), "script")
    with pytest.raises(QuantizationError, match=r"for embedding_bag_byte, but .* goes to aten::linear"):
        prepare(script, {"": QConfig(BYTE, BYTE)})


class Bag(nn.Module):
    """A weighted embedding bag in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 16, mode="sum", include_last_offset=True)
        self.fc = nn.Linear(16, 4)

    def forward(self, indices, offsets, weights):
        return self.fc(self.bag(indices, offsets, weights))


def test_an_embedding_placeholder_on_an_embedding_bag_serves() -> None:
    arguments = (torch.tensor([1, 2, 3, 4]), torch.tensor([0, 2, 4]), torch.rand(4))
    script = compiled(Bag(), "trace", arguments)
    prepared = quantization.prepare_jit(script, {"bag": QConfig(BYTE, BYTE)})
    quantized = quantization.convert_jit(prepared)
    assert "quantized::embedding_bag_byte_rowwise_offsets" in str(quantized.inlined_graph)
    torch.testing.assert_close(quantized(*arguments), script(*arguments), atol=0.02, rtol=0)


def test_static_quantization_needs_ranges() -> None:
    script = compiled(Tower(), "script")
    with pytest.raises(QuantizationError, match="records no range, but static quantization needs one"):
        quantization.prepare_jit(script, {"": DYNAMIC})


def test_what_the_passes_refuse_is_one_sentence() -> None:
    script = compiled(Tower(), "script")
    nothing = QConfig(NoopObserver, quantization.default_weight_observer)
    prepared = quantization.prepare_jit(script, {"": nothing})
    prepared(torch.randn(2, 16))
    before = models.state(prepared)
    with pytest.raises(RuntimeError) as caught:
        quantization.convert_jit(prepared, inplace=True)
    assert isinstance(caught.value, ScriptError)
    assert len(str(caught.value)) < 600
    assert models.same_state(before, models.state(prepared))


def test_a_failing_calibration_leaves_the_model() -> None:
    script = compiled(Tower(), "script")
    before = models.state(script)

    def fail(model) -> None:
        raise LookupError("no data")

    with pytest.raises(LookupError, match="no data"):
        quantization.quantize_jit(script, {"": STATIC}, lambda m, _: fail(m), [0], inplace=True)
    assert models.same_state(before, models.state(script))


@pytest.mark.parametrize("given, message", [
    (["nothing"], r"names \['nothing'\], which the model does not have"),
    ("fc", "must be a list of attribute names, got 'fc'"),
    ([3], r"must be a list of attribute names, got \[3\]"),
])  # fmt: skip
def test_preserved_attributes_must_exist(given, message: str) -> None:
    prepared = quantization.prepare_dynamic_jit(compiled(TwoMethods(), "script"), {"": DYNAMIC})
    before = models.state(prepared)
    with pytest.raises(QuantizationError, match=message):
        quantization.convert_dynamic_jit(prepared, True, preserved_attrs=given)
    assert models.same_state(before, models.state(prepared))


def test_converting_without_data_is_reported() -> None:
    prepared = quantization.prepare_jit(compiled(Convolutional(), "script"), {"": STATIC})
    with pytest.warns(
        quantization.QuantizationWarning, match=r"observers have seen no data \(.*_observer_\d"
    ):
        quantization.convert_jit(prepared)
    prepared(torch.randn(2, 3, 10, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantization.convert_jit(prepared)
