"""Quantized activations: bit-equal to torch.ao on every engine; what torch.ao forgets is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from observers import MinMaxObserver, PerChannelMinMaxObserver
from quantization.errors import InvalidRequest, QuantizationError
from quantization.nn import activations
from quantization.qconfig import QConfig
from tests.quantization.nn.cells import LIVES, assert_identical, layout, observed, quantized, saved
from tests.support import quiet_ao

# A quint8 weight observer is what PReLU wants; no other activation has a weight.
QCONFIG = QConfig(activation=MinMaxObserver, weight=MinMaxObserver)
SYMMETRIC = QConfig(
    activation=MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    weight=MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
)


@dataclass(frozen=True)
class Case:
    """A quantized class, the float module it is made from, and what torch.ao's checkpoint lacks."""

    name: str
    make: Callable[[], nn.Module]
    extra: tuple[str, ...] = ()
    id: str = ""

    def calibrated(self) -> nn.Module:
        return observed(self.make(), QCONFIG, torch.randn(2, 4, 6, 6))

    def ours(self) -> nn.Module:
        return getattr(activations, self.name).from_float(self.calibrated())


NUMBERS = ("scale", "zero_point")
SLOPES = ("weight_codes", "weight_scale", "weight_zero_point")
CASES = [
    Case("ReLU6", nn.ReLU6),
    Case("Dropout", lambda: nn.Dropout(0.3)),
    Case("Hardswish", nn.Hardswish),
    Case("LeakyReLU", lambda: nn.LeakyReLU(0.3)),
    Case("LeakyReLU", lambda: nn.LeakyReLU(0.3, inplace=True), id="LeakyReLU-inplace"),
    Case("ELU", lambda: nn.ELU(1.5), NUMBERS),
    Case("Sigmoid", nn.Sigmoid, ("output_scale", "output_zero_point")),
    Case("Softmax", lambda: nn.Softmax(1), NUMBERS),
    Case("PReLU", nn.PReLU, (*NUMBERS, *SLOPES)),
    Case("PReLU", lambda: nn.PReLU(4, init=0.1), (*NUMBERS, *SLOPES), "PReLU-per-channel"),
]
MEASURED = [c for c in CASES if c.name not in ("ReLU6", "Dropout")]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id or c.name)
each_measured = pytest.mark.parametrize("case", MEASURED, ids=lambda c: c.id or c.name)


def oracle(name: str, mod: nn.Module) -> nn.Module:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    with quiet_ao():
        return getattr(nnq, name).from_float(mod)


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor | str:
    """The output, or the words of the engine's refusal (qnnpack's sigmoid knows one scale only)."""
    try:
        return module(x)
    except RuntimeError as error:
        return str(error).splitlines()[0]


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "PReLU"], ids=lambda c: c.id or c.name)
def test_outputs_equal_torch_ao(engine: str, case: Case) -> None:
    mod = case.calibrated()
    x = quantized(2, 4, 6, 6)
    ours = run(getattr(activations, case.name).from_float(mod), x.clone())
    theirs = run(oracle(case.name, mod), x.clone())
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert_identical(ours, theirs)


@pytest.mark.parametrize("slope", [-0.5, 0.1, 0.25, 2.0])
@pytest.mark.parametrize("weight", [MinMaxObserver, SYMMETRIC.weight], ids=["quint8", "qint8"])
def test_prelu_passes_positive_values(engine: str, slope: float, weight: Any) -> None:
    # torch.ao's does not: the kernel multiplies them by 1 in the codes of the slopes, which end below 1.
    x = torch.randn(8, 4)
    new = activations.PReLU.from_float(observed(nn.PReLU(4, init=slope), QConfig(MinMaxObserver, weight), x))
    y = new(torch.quantize_per_tensor(x, 0.02, 128, torch.quint8)).dequantize()
    expected = nn.functional.prelu(x.clamp(-2.56, 2.54), torch.tensor(slope))
    assert (y - expected).abs().max() <= 0.5 * new.scale + 0.01 * max(1, abs(slope)) + 0.02


@pytest.mark.parametrize("slope", [0.6, 1.5])
def test_prelu_keeps_the_codes_of_the_observer_where_they_express_one(engine: str, slope: float) -> None:
    # Of 7 bits: 1 is code 127 / 0.6 = 212, beyond the observer's own codes and within those of quint8.
    weight = MinMaxObserver.with_args(quant_min=0, quant_max=127)
    x = torch.randn(8, 4)
    new = activations.PReLU.from_float(observed(nn.PReLU(4, init=slope), QConfig(MinMaxObserver, weight), x))
    assert new.weight.q_scale() == pytest.approx(slope / 127)
    y = new(torch.quantize_per_tensor(x, 0.02, 128, torch.quint8)).dequantize()
    expected = nn.functional.prelu(x.clamp(-2.56, 2.54), torch.tensor(slope))
    assert (y - expected).abs().max() <= 0.5 * new.scale + 0.02 * max(1, slope) + 0.02


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 4), (2, 3, 4, 5)], ids=lambda s: f"{len(s)}d")
def test_softmax_without_a_dimension_chooses_as_torch_ao(shape: tuple[int, ...]) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    x = quantized(*shape)
    with quiet_ao(), pytest.warns(UserWarning, match="Implicit dimension choice"):
        theirs = nnq.Softmax(None, 1 / 256, 0)(x)
    assert_identical(activations.Softmax(None, 1 / 256, 0)(x), theirs)


@each_case
def test_state_dict_has_torch_ao_s_keys_and_the_forgotten_ones(case: Case) -> None:
    mod = case.calibrated()
    ours, theirs = getattr(activations, case.name).from_float(mod), oracle(case.name, mod)
    state = ours.state_dict()
    assert layout({k: v for k, v in state.items() if k not in case.extra}) == layout(theirs.state_dict())
    assert set(case.extra) <= set(state)
    assert state._metadata == theirs.state_dict()._metadata
    assert ours._get_name() == theirs._get_name()
    assert repr(ours) == repr(theirs)


@each_case
def test_loads_a_checkpoint_of_torch_ao_without_complaint(case: Case) -> None:
    theirs = oracle(case.name, case.calibrated())
    fresh = case.ours()
    x = quantized(2, 4, 6, 6)
    before = fresh(x)
    assert fresh.load_state_dict(theirs.state_dict()) == ([], [])
    assert_identical(fresh(x), before if case.extra else theirs(x))


@each_case
def test_a_saved_checkpoint_restores_everything(case: Case) -> None:
    source, target = case.ours(), getattr(activations, case.name).from_float(case.calibrated())
    target.load_state_dict(torch.load(saved(source.state_dict()), weights_only=True))
    x = quantized(2, 4, 6, 6)
    assert_identical(target(x), source(x))


def test_numbers_keep_their_precision_through_a_checkpoint() -> None:
    fresh = activations.ELU(1.0, 0)
    fresh.load_state_dict(activations.ELU(0.1, 7).state_dict())
    assert (fresh.scale, fresh.zero_point) == (0.1, 7)
    assert isinstance(fresh.zero_point, int)


def test_a_checkpoint_with_several_scales_is_refused() -> None:
    with pytest.raises(RuntimeError, match="must hold one number; the checkpoint has 2"):
        activations.ELU(1.0, 0).load_state_dict({"scale": torch.ones(2), "zero_point": torch.tensor(0)})


def test_an_unknown_key_is_still_reported() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        activations.ELU(1.0, 0).load_state_dict({"slope": torch.tensor(0)})


@each_case
@pytest.mark.parametrize("life", LIVES)
def test_survives(case: Case, life: str) -> None:
    module = case.ours()
    again = LIVES[life](module)
    x = quantized(2, 4, 6, 6)
    assert_identical(again(x), module(x))
    if life != "script":  # TorchScript keeps numbers as attributes of the archive, outside its state dict
        assert layout(again.state_dict()) == layout(module.state_dict())
        assert dir(again) == dir(module)


@pytest.mark.parametrize("name", [c.name for c in CASES if c.name != "Dropout"])
def test_float_input_is_refused_with_the_cure(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(QuantizationError, match=r"must be quantized.*QuantStub"):
        case.ours()(torch.randn(2, 4, 6, 6))


@each_measured
def test_a_module_that_was_not_prepared_is_refused(case: Case) -> None:
    with pytest.raises(InvalidRequest, match="must have activation_post_process"):
        getattr(activations, case.name).from_float(case.make())


@each_measured
def test_from_reference_takes_numbers_and_tensors(case: Case) -> None:
    cls = getattr(activations, case.name)
    y = cls.from_reference(case.make(), torch.tensor(1 / 256), torch.tensor(0))(quantized(2, 4, 6, 6))
    assert (y.q_scale(), y.q_zero_point()) == (1 / 256, 0)


def test_relu6_and_dropout_need_no_observer() -> None:
    x = quantized(3)
    assert activations.Dropout.from_float(nn.Dropout(0.7)).train()(x) is x
    assert activations.ReLU6.from_float(nn.ReLU6())(x).dequantize().min() >= 0
    assert activations.ReLU6.from_reference(nn.ReLU6(inplace=True), 1.0, 0).inplace


@pytest.mark.parametrize(
    "weight",
    [
        MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
        MinMaxObserver.with_args(dtype=torch.qint8),
        PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric),
    ],
    ids=["default_qconfig", "affine-qint8", "x86_qconfig"],
)
@pytest.mark.parametrize("slope", [-0.5, 0.25])
def test_prelu_quantizes_slopes_itself_where_the_observer_does_not_fit(weight: Any, slope: float) -> None:
    mod = observed(nn.PReLU(4, init=slope), QConfig(MinMaxObserver, weight), torch.randn(2, 4))
    new = activations.PReLU.from_float(mod)
    assert new.weight.dtype is torch.quint8
    assert new.weight.dequantize().tolist() == pytest.approx([slope] * 4, abs=0.002)


def test_prelu_refuses_qint8_activations() -> None:
    mod = observed(nn.PReLU(4), SYMMETRIC, torch.randn(2, 4))
    with pytest.raises(InvalidRequest, match=r"activations only, the observer has torch\.qint8"):
        activations.PReLU.from_float(mod)


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(4), torch.quantize_per_tensor(torch.ones(4), 1.0, 0, torch.qint8), "0.25", None],
    ids=["float", "qint8", "text", "None"],
)
def test_prelu_refuses_another_weight(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"takes a per-tensor torch\.quint8 weight"):
        activations.PReLU(1.0, 0).set_weight(wrong)


def test_prelu_gives_back_the_weight_it_was_given() -> None:
    module, weight = activations.PReLU(1.0, 0, 4), quantized(4)
    module.set_weight(weight)
    assert_identical(module.weight, weight)


def test_prelu_refuses_a_checkpoint_with_another_number_of_slopes() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight_codes"):
        activations.PReLU(1.0, 0, 2).load_state_dict(activations.PReLU(1.0, 0, 3).state_dict())


def test_prelu_is_made_from_prelu_only() -> None:
    with pytest.raises(InvalidRequest, match=r"made from an nn\.PReLU, not from Identity"):
        activations.PReLU.from_float(observed(nn.Identity(), QCONFIG, torch.randn(3)))
