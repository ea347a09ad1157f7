"""Functional modules: what is observed, what is quantized, and torch.ao's results bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from observers import MinMaxObserver, PlaceholderObserver
from quantization.errors import InvalidRequest, QuantizationError
from quantization.markers import ObserverSlot
from quantization.nn.functional_modules import FloatFunctional, FXFloatFunctional, QFunctional
from tests.quantization.nn.cells import LIVES, assert_identical, layout, quantized, saved
from tests.support import quiet_ao

# name -> arguments made from a function that gives a tensor
CALLS: dict[str, Any] = {
    "add": lambda t: (t(3, 4), t(3, 4)),
    "add_relu": lambda t: (t(3, 4), t(3, 4)),
    "mul": lambda t: (t(3, 4), t(1, 4)),
    "matmul": lambda t: (t(2, 3, 4), t(2, 4, 5)),
    "cat": lambda t: ([t(3, 4), t(3, 2)], 1),
    "add_scalar": lambda t: (t(3, 4), 2.0),
    "mul_scalar": lambda t: (t(3, 4), -2.0),
}
SCALAR = ("add_scalar", "mul_scalar")
each_call = pytest.mark.parametrize("call", CALLS)


class Count(nn.Module):
    """An observer that counts and changes nothing."""

    seen = 0

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return x


def calibrated() -> FloatFunctional:
    mod = FloatFunctional()
    mod.activation_post_process = MinMaxObserver()
    mod.add(torch.randn(50), torch.randn(50))
    return mod


@each_call
@pytest.mark.parametrize("cls", [FloatFunctional, FXFloatFunctional])
def test_float_results_equal_torch_ao(cls: type[nn.Module], call: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    arguments = CALLS[call](torch.randn)
    expected = getattr(getattr(nnq, cls.__name__)(), call)(*arguments)
    assert torch.equal(getattr(cls(), call)(*arguments), expected)


@each_call
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8], ids=["quint8", "qint8"])
def test_quantized_results_equal_torch_ao(engine: str, call: str, dtype: torch.dtype) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    ours, theirs = QFunctional(), nnq.QFunctional()
    ours.scale = theirs.scale = 0.07
    ours.zero_point = theirs.zero_point = 11
    arguments = CALLS[call](lambda *shape: quantized(*shape, dtype=dtype))
    with quiet_ao():
        try:
            expected = getattr(theirs, call)(*arguments)
        except RuntimeError as error:
            with pytest.raises(type(error), match=call):
                getattr(ours, call)(*arguments)
            return
    assert_identical(getattr(ours, call)(*arguments), expected)


@each_call
@pytest.mark.parametrize("cls", [FloatFunctional, QFunctional])
def test_what_passes_through_the_observer(cls: Any, call: str) -> None:
    module = cls()
    module.activation_post_process = Count()
    getattr(module, call)(*CALLS[call](quantized if cls is QFunctional else torch.randn))
    unobserved = call in SCALAR or (cls is QFunctional and call == "matmul")
    assert module.activation_post_process.seen == (0 if unobserved else 1)


@pytest.mark.parametrize("cls", [FloatFunctional, FXFloatFunctional, QFunctional])
def test_forward_names_the_operations(cls: type[nn.Module]) -> None:
    with pytest.raises(RuntimeError, match=r"not intended to use the 'forward'.*add_relu or matmul"):
        cls()(torch.ones(1))


@pytest.mark.parametrize("cls", [FloatFunctional, QFunctional])
def test_owns_an_observer_slot(cls: type[nn.Module]) -> None:
    assert issubclass(cls, ObserverSlot)
    assert type(cls().activation_post_process) is nn.Identity
    assert not issubclass(FXFloatFunctional, ObserverSlot)


def test_from_float_equals_torch_ao() -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    mod, twin = calibrated(), nnq.FloatFunctional()
    twin.activation_post_process = mod.activation_post_process
    ours, theirs = QFunctional.from_float(mod), nnq.QFunctional.from_float(twin)
    assert (ours.scale, ours.zero_point) == (theirs.scale, theirs.zero_point)
    assert layout(ours.state_dict()) == layout(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(ours) == repr(theirs)


def test_checkpoints_load_both_ways() -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    for make, load in ((QFunctional, nnq.QFunctional), (nnq.QFunctional, QFunctional)):
        source, target = make(), load()
        source.scale, source.zero_point = 0.25, 9
        target.load_state_dict(torch.load(saved(source.state_dict()), weights_only=True))
        assert (target.scale, target.zero_point) == (0.25, 9)
        assert (type(target.scale), type(target.zero_point)) == (float, int)


def test_missing_and_unknown_keys_are_named() -> None:
    module = QFunctional()
    assert module.load_state_dict({"scale": torch.tensor(2.0)}, strict=False).missing_keys == ["zero_point"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"scale", "zero_point"'):
        module.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**QFunctional().state_dict(), "bias": torch.tensor(0)})


@pytest.mark.parametrize("wrong", [nn.Linear(1, 1), FXFloatFunctional(), QFunctional()], ids=repr)
def test_from_float_takes_a_float_functional_only(wrong: nn.Module) -> None:
    with pytest.raises(InvalidRequest, match="expects an instance of FloatFunctional, got"):
        QFunctional.from_float(wrong)


def test_from_float_needs_an_observer_with_parameters() -> None:
    with pytest.raises(InvalidRequest, match="must have activation_post_process"):
        QFunctional.from_float(FloatFunctional())
    mod = FloatFunctional()
    mod.activation_post_process = PlaceholderObserver()
    with pytest.raises(InvalidRequest, match="PlaceholderObserver"):
        QFunctional.from_float(mod)


@each_call
def test_quantized_operations_refuse_float_tensors(call: str) -> None:
    with pytest.raises(QuantizationError, match=rf"Input to 'QFunctional\.{call}' must be quantized"):
        getattr(QFunctional(), call)(*CALLS[call](torch.randn))


def test_quantized_add_of_a_number_is_refused_clearly() -> None:
    with pytest.raises(QuantizationError, match=r"QFunctional\.add"):
        QFunctional().add(quantized(2), 2.0)  # pyright: ignore[reportArgumentType]


class Sum(nn.Module):
    """Uses a functional module, as a model would."""

    def __init__(self, functional: nn.Module) -> None:
        super().__init__()
        self.functional = functional

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.functional.cat([self.functional.add(x, x), self.functional.mul_scalar(x, 2.0)])


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("cls", [FloatFunctional, FXFloatFunctional, QFunctional])
def test_survives_inside_a_model(cls: type[nn.Module], life: str) -> None:
    model = Sum(cls())
    again = LIVES[life](model)
    x = quantized(2, 3) if cls is QFunctional else torch.randn(2, 3)
    assert_identical(again(x), model(x))
