"""Stubs are identities that carry a qconfig; the wrapper puts one at each end."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from observers import MinMaxObserver
from quantization.markers import NotObserved
from quantization.nn.stub_modules import DeQuantize, Quantize
from quantization.qconfig import QConfig
from quantization.stubs import DeQuantStub, QuantStub, QuantWrapper
from tests.quantization.nn.cells import LIVES, scripted

QCONFIG = QConfig(activation=MinMaxObserver, weight=MinMaxObserver)


@pytest.mark.parametrize("stub", [QuantStub, DeQuantStub])
def test_a_stub_returns_its_input(stub: type[nn.Module]) -> None:
    x = torch.randn(2, 3)
    assert stub()(x) is x
    assert stub().state_dict() == {}


@pytest.mark.parametrize("stub", [QuantStub, DeQuantStub])
def test_a_stub_has_a_qconfig_only_if_given_one(stub: type[nn.Module]) -> None:
    assert stub(QCONFIG).qconfig is QCONFIG
    assert not hasattr(stub(), "qconfig")
    assert not hasattr(stub(None), "qconfig")


def test_only_the_dequant_stub_is_never_observed() -> None:
    assert isinstance(DeQuantStub(), NotObserved)
    assert not isinstance(QuantStub(), NotObserved)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_wrapper_takes_qconfig_and_mode_from_the_module(training: bool) -> None:
    module = nn.Linear(2, 3).train(training)
    module.qconfig = QCONFIG
    wrapper = QuantWrapper(module)
    assert [name for name, _ in wrapper.named_children()] == ["quant", "dequant", "module"]
    assert wrapper.module is module
    assert wrapper.quant.qconfig is wrapper.dequant.qconfig is QCONFIG
    assert {m.training for m in wrapper.modules()} == {training}
    assert not hasattr(QuantWrapper(nn.Linear(2, 3)).quant, "qconfig")


def test_the_wrapper_computes_what_the_module_does() -> None:
    module, x = nn.Linear(2, 3), torch.randn(4, 2)
    assert torch.equal(QuantWrapper(module)(x), module(x))


@pytest.mark.parametrize("life", LIVES)
def test_the_wrapper_survives_before_and_after_conversion(life: str) -> None:
    wrapper = QuantWrapper(nn.Sequential(nn.ReLU(), nn.Flatten()))
    x = torch.randn(2, 3, 4)
    assert torch.equal(LIVES[life](wrapper)(x), wrapper(x))
    wrapper.quant, wrapper.dequant = Quantize(0.1, 10, torch.quint8), DeQuantize()
    assert torch.equal(LIVES[life](wrapper)(x), wrapper(x))


def test_the_wrapper_has_no_class_annotations_for_torchscript_to_hold_it_to() -> None:
    assert not inspect.get_annotations(QuantWrapper)
    wrapper = QuantWrapper(nn.ReLU())
    wrapper.quant = nn.Identity()
    assert scripted(wrapper)(torch.tensor([-1.0])).item() == 0


def test_the_wrapper_refuses_what_is_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"QuantWrapper wraps a torch\.nn\.Module, got int"):
        QuantWrapper(3)  # pyright: ignore[reportArgumentType]
