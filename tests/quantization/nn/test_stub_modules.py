"""Quantize and DeQuantize: the parameters of a calibrated stub, and torch.ao's checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from observers import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from quantization.errors import InvalidRequest, QuantizationError
from quantization.nn.stub_modules import DeQuantize, Quantize
from quantization.stubs import DeQuantStub, QuantStub
from tests.quantization.nn.cells import LIVES, assert_identical, layout, quantized, saved
from tests.support import quiet_ao

DTYPES = pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8], ids=["quint8", "qint8"])


def calibrated(dtype: torch.dtype, x: torch.Tensor | None = None) -> nn.Module:
    stub = QuantStub()
    stub.activation_post_process = MinMaxObserver(dtype=dtype)
    stub.activation_post_process(torch.randn(100) if x is None else x)
    return stub


@DTYPES
def test_equals_torch_ao(engine: str, dtype: torch.dtype) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    stub, x = calibrated(dtype), torch.randn(3, 50) * 2
    with quiet_ao():
        ours, theirs = Quantize.from_float(stub), nnq.Quantize.from_float(stub)
    assert_identical(ours(x), theirs(x))
    assert_identical(Quantize(0.1, 3, dtype)(x), nnq.Quantize(0.1, 3, dtype)(x))
    assert layout(ours.state_dict()) == layout(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(ours) == repr(theirs)


def test_checkpoints_load_both_ways() -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    x = torch.randn(20)
    for make, load in ((Quantize, nnq.Quantize), (nnq.Quantize, Quantize)):
        source, target = make(0.1, 3, torch.quint8), load(1.0, 0, torch.quint8)
        target.load_state_dict(torch.load(saved(source.state_dict()), weights_only=True))
        assert_identical(target(x), source(x))


@pytest.mark.parametrize(
    "scale", [0.5, torch.tensor(0.5), torch.tensor([0.5])], ids=["number", "0-dim", "1-element"]
)
def test_takes_numbers_and_tensors(scale: Any) -> None:
    module = Quantize(scale, 3 if isinstance(scale, float) else (scale * 6).int(), torch.quint8)
    assert layout(module.state_dict()) == [
        ("scale", (torch.float32, (1,))),
        ("zero_point", (torch.int64, (1,))),
    ]
    assert module(torch.tensor([1.0])).int_repr().item() == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_takes_every_float_type(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.0, 0.25, 1.0])
    module = Quantize(0.25, 10, torch.quint8)
    assert_identical(module(x.to(dtype)), module(x))


def test_factory_kwargs_give_the_type_of_the_scale() -> None:
    module = Quantize(0.25, 10, torch.quint8, {"dtype": torch.float64, "device": "cpu"})
    assert (module.scale.dtype, module.zero_point.dtype) == (torch.float64, torch.int64)
    assert module(torch.ones(1)).int_repr().item() == 14


def test_refuses_a_quantized_input_with_the_cure() -> None:
    with pytest.raises(QuantizationError, match="quantized already: remove this QuantStub"):
        Quantize(0.25, 10, torch.quint8)(quantized(3))


def test_from_float_needs_an_observer() -> None:
    with pytest.raises(InvalidRequest, match="QuantStub must have activation_post_process"):
        Quantize.from_float(QuantStub())


def test_from_float_refuses_an_observer_that_gives_no_parameters() -> None:
    stub = QuantStub()
    stub.activation_post_process = PlaceholderObserver()
    with pytest.raises(InvalidRequest, match=r"PlaceholderObserver of dtype torch\.float32"):
        Quantize.from_float(stub)


def test_from_float_refuses_one_scale_per_channel() -> None:
    stub = QuantStub()
    stub.activation_post_process = PerChannelMinMaxObserver()
    stub.activation_post_process(torch.randn(3, 4))
    with pytest.raises(InvalidRequest, match="3 scales"):
        Quantize.from_float(stub)


def test_dequantize_gives_float_and_passes_float() -> None:
    module, x = DeQuantize.from_float(DeQuantStub()), quantized(4)
    assert torch.equal(module(x), x.dequantize())
    plain = torch.randn(4)
    assert torch.equal(module(plain), plain)
    assert module.state_dict() == {}


@pytest.mark.parametrize("life", LIVES)
def test_both_survive(life: str) -> None:
    module, x = nn.Sequential(Quantize(0.1, 3, torch.quint8), DeQuantize()), torch.randn(10)
    again = LIVES[life](module)
    assert torch.equal(again(x), module(x))
    assert layout(again.state_dict()) == layout(module.state_dict())
