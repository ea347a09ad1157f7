"""Reading a float, fused or QAT module without changing it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

import observers
from quantization.errors import InvalidRequest
from quantization.nn import fused, qat
from quantization.nn.calibrated import calibrated, calibrated_weight, folded, unwrapped
from quantization.qconfig import QConfig, default_dynamic_qconfig, default_qconfig, get_default_qat_qconfig


def trained(cls: Any, *parts: nn.Module) -> Any:
    """A QAT module that has seen three batches."""
    module = getattr(fused, cls.__name__)(*parts)
    module.qconfig = get_default_qat_qconfig("x86")
    made = cls.from_float(module.train())
    made.activation_post_process = module.qconfig.activation()
    shape = (5, 4) if isinstance(parts[0], nn.Linear) else (2, 4, 6, 6)
    for _ in range(3):
        made.activation_post_process(made(torch.randn(shape)))
    return made


CASES = [
    pytest.param(
        qat.ConvBn2d, lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), id="ConvBn2d"
    ),
    pytest.param(qat.ConvBn2d, lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6), id="ConvBn2d-bias"),
    pytest.param(qat.LinearBn1d, lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), id="LinearBn1d"),
]


@pytest.mark.parametrize(("cls", "layer", "norm"), CASES)
def test_batch_norm_is_folded_into_copies(cls: Any, layer: Any, norm: Any) -> None:
    module = trained(cls, layer(), norm())
    before = copy.deepcopy(module.state_dict())
    bn = module.bn
    fuse = fuse_linear_bn_weights if cls is qat.LinearBn1d else fuse_conv_bn_weights
    weight, bias = fuse(
        module.weight, module.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    found = calibrated(module)
    assert torch.equal(found.weight, weight)
    assert found.bias is not None
    assert torch.equal(found.bias, bias)
    assert not found.weight.requires_grad
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fused_float_module_is_read_through_its_first_part() -> None:
    conv = nn.Conv2d(2, 3, 1)
    module = fused.ConvReLU2d(conv, nn.ReLU())
    module.qconfig = default_qconfig
    module.activation_post_process = observers.MinMaxObserver()
    module.activation_post_process(torch.tensor([0.0, 2.55]))
    found = calibrated(module)
    assert unwrapped(module) is conv
    assert found.geometry is conv
    assert (found.scale, found.zero_point) == (pytest.approx(0.01), 0)
    assert torch.equal(found.weight, conv.weight)


def test_float32_activation_keeps_the_output_float() -> None:
    linear = nn.Linear(2, 2)
    linear.qconfig = QConfig(
        activation=observers.default_placeholder_observer, weight=observers.default_weight_observer
    )
    linear.activation_post_process = observers.PlaceholderObserver()
    assert (calibrated(linear).scale, calibrated(linear).zero_point) == (1.0, 0)


def test_weight_is_observed_once_more_on_a_copy() -> None:
    linear = nn.Linear(3, 3)
    linear.weight_fake_quant = observers.FakeQuantize(
        observers.MovingAverageMinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8
    )
    linear.weight_fake_quant(10 * torch.ones(3, 3))
    before = linear.weight_fake_quant.activation_post_process.max_val.clone()
    again, trusted = calibrated(linear), calibrated(linear, use_precomputed_fake_quant=True)
    assert torch.equal(linear.weight_fake_quant.activation_post_process.max_val, before)
    assert again.weight_observer.activation_post_process.max_val < before
    assert trusted.weight_observer is linear.weight_fake_quant


@pytest.mark.parametrize("version", [0, 1], ids=["plain", "fused"])
@pytest.mark.parametrize("engine_name", ["x86", "qnnpack"], ids=["per_channel", "per_tensor"])
@pytest.mark.parametrize("precomputed", [True, False])
def test_a_weight_that_training_never_saw_is_observed_now(
    version: int, engine_name: str, precomputed: bool
) -> None:
    linear = nn.Linear(3, 3)
    linear.weight_fake_quant = get_default_qat_qconfig(engine_name, version).weight()
    linear.weight_fake_quant.disable_observer()
    before = copy.deepcopy(linear.weight_fake_quant.state_dict())
    found = calibrated(linear, precomputed)
    assert float(found.weight_observer.activation_post_process.max_val.max()) == linear.weight.max()
    for name, value in linear.weight_fake_quant.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dynamic_reading_makes_a_new_observer_even_for_qat() -> None:
    linear = nn.Linear(3, 3)
    linear.qconfig = default_dynamic_qconfig
    linear.weight_fake_quant = observers.default_weight_fake_quant()
    found = calibrated_weight(linear)
    assert isinstance(found.weight_observer, observers.MinMaxObserver)
    assert found.weight_observer.max_val == linear.weight.max()
    linear.qconfig = None
    assert isinstance(calibrated_weight(linear).weight_observer, observers.MinMaxObserver)


def test_parametrized_weight_is_read_as_the_layer_computes_it() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert torch.equal(folded(linear)[0], linear.weight)


@pytest.mark.parametrize(
    "qconfig",
    [
        pytest.param(None, id="None"),
        pytest.param(QConfig(activation=observers.default_observer, weight=None), id="no-weight"),
    ],
)
def test_qconfig_without_a_weight_observer_is_refused(qconfig: Any) -> None:
    linear = nn.Linear(2, 2)
    linear.qconfig = qconfig
    with pytest.raises(InvalidRequest, match="Linear must have qconfig defined, with a weight observer"):
        calibrated(linear)


def test_module_without_qconfig_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must have qconfig defined: Linear has none"):
        calibrated(nn.Linear(2, 2))
