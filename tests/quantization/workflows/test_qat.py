"""prepare_qat and quantize_qat: what they refuse and what they warn of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import qat, quantized


def model() -> nn.Sequential:
    m = nn.Sequential(
        q.QuantStub(),
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 3),
        q.DeQuantStub(),
    )
    m.qconfig = q.get_default_qat_qconfig()
    return m


def train(m: nn.Module) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        m(torch.randn(4, 1, 5, 5)).square().mean().backward()
        optimizer.step()


def test_the_whole_path():
    fused = q.fuse_modules_qat(model(), [["1", "2", "3"]])
    prepared = q.prepare_qat(fused)
    assert type(prepared[1]) is qat.ConvBnReLU2d and type(prepared[5]) is qat.Linear
    train(prepared)
    converted = q.convert(prepared.eval(), strict=True)
    assert type(converted[1]) is quantized.ConvReLU2d and type(converted[5]) is quantized.Linear
    x = torch.randn(4, 1, 5, 5)
    assert (converted(x) - prepared(x)).abs().max() < 0.1


def test_quantize_qat_leaves_the_callers_model_alone():
    m = model()
    weight = m[1].weight.detach().clone()
    converted = q.quantize_qat(m, train, [])
    assert type(converted[1]) is quantized.Conv2d
    assert type(m[1]) is nn.Conv2d and torch.equal(m[1].weight, weight)


def test_in_place_the_parameters_stay_the_same_objects():
    m = model()
    before = {id(p) for p in m.parameters()}
    q.prepare_qat(m, inplace=True)
    assert before <= {id(p) for p in m.parameters()}


def test_evaluation_mode_is_refused_with_the_cure():
    m = model().eval()
    with pytest.raises(
        AssertionError, match=r"prepare_qat only works on models in training mode.*model\.train\(\)"
    ):
        q.prepare_qat(m, inplace=True)
    assert type(m[1]) is nn.Conv2d and not hasattr(m[1], "qconfig")


def test_a_qconfig_that_does_not_fake_quantize_is_named():
    m = model()
    m.qconfig = q.get_default_qconfig()
    with pytest.warns(
        q.QuantizationWarning, match=r"'1' \(Conv2d\).*does not fake-quantize.*get_default_qat_qconfig"
    ):
        q.prepare_qat(m)
    with pytest.raises(q.QuantizationError, match="does not fake-quantize"):
        q.prepare_qat(m, strict=True, inplace=True)
    assert type(m[1]) is nn.Conv2d and not hasattr(m[1], "qconfig")


@pytest.mark.parametrize(
    "name", ["default_qat_qconfig", "default_weight_only_qconfig", "default_activation_only_qconfig"]
)
def test_one_sided_fake_quantization_is_no_mistake(name: str):
    m = model()
    m.qconfig = getattr(q, name)
    q.prepare_qat(m, strict=True)


def test_a_lone_conv1d_is_trained_and_converted():
    m = nn.Sequential(q.QuantStub(), nn.Conv1d(2, 3, 3), nn.Conv1d(3, 3, 1), nn.ReLU(), q.DeQuantStub())
    m.qconfig = q.get_default_qat_qconfig("x86")
    prepared = q.prepare_qat(q.fuse_modules_qat(m, [["2", "3"]]))
    assert type(prepared[1]) is qat.Conv1d and type(prepared[2]) is qat.ConvReLU1d
    x = torch.randn(4, 2, 7)
    prepared(x).sum().backward()
    converted = q.convert(prepared.eval(), strict=True)
    assert type(converted[1]) is quantized.Conv1d and type(converted[2]) is quantized.ConvReLU1d
    assert (converted(x) - prepared(x)).abs().max() < 0.1


def test_togglers_apply():
    prepared = q.prepare_qat(model())
    prepared.apply(q.disable_fake_quant)
    prepared.apply(q.disable_observer)
    fake_quantizer = prepared[1].weight_fake_quant
    assert not fake_quantizer.fake_quant_enabled.any() and not fake_quantizer.observer_enabled.any()
    prepared.apply(q.enable_fake_quant)
    prepared.apply(q.enable_observer)
    assert fake_quantizer.fake_quant_enabled.all() and fake_quantizer.observer_enabled.all()
