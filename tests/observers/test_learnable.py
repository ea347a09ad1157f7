"""Fake quantization with trained scale and zero point."""

from __future__ import annotations

import logging

import pytest
import torch

from observers import MinMaxObserver, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from observers.learnable import _LearnableFakeQuantize

SWITCHES = ("fake_quant_enabled", "static_enabled", "learning_enabled")


def states(module):
    return tuple(int(getattr(module, name)) for name in SWITCHES)


def test_the_three_states():
    module = _LearnableFakeQuantize(MovingAverageMinMaxObserver)
    assert states(module) == (1, 1, 0)
    assert module.enable_param_learning() is module
    assert states(module) == (1, 0, 1)
    assert module.scale.requires_grad
    module.enable_static_estimate()
    assert states(module) == (1, 1, 0)
    assert not module.scale.requires_grad
    module.enable_static_observation()
    assert states(module) == (0, 1, 0)
    module.disable_observer()
    assert states(module) == (0, 0, 0)
    module.enable_observer()
    module.enable_fake_quant()
    assert states(module) == (1, 1, 0)


def test_learning_reaches_scale_and_zero_point():
    module = _LearnableFakeQuantize(MovingAverageMinMaxObserver, scale=0.1, zero_point=3.0)
    module.enable_param_learning()
    module(torch.randn(50) * 20).square().sum().backward()
    assert module.scale.grad is not None
    assert module.zero_point.grad is not None
    assert module.scale.grad.abs().item() > 0


def test_training_the_scale_lowers_the_error():
    x = torch.randn(2000)
    module = _LearnableFakeQuantize(
        MovingAverageMinMaxObserver,
        quant_min=-8,
        quant_max=7,
        scale=1.0,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
        use_grad_scaling=True,
    ).enable_param_learning()
    first = (module(x) - x).square().mean().item()
    optimizer = torch.optim.Adam([module.scale], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (module(x) - x).square().mean().backward()
        optimizer.step()
    assert (module(x) - x).square().mean().item() < first / 2


def test_static_states_follow_the_observer():
    module = _LearnableFakeQuantize(MovingAverageMinMaxObserver)
    module.enable_static_estimate()
    module(torch.tensor([0.0, 2.55]))
    assert module.scale.item() == pytest.approx(0.01)
    module.enable_static_observation()
    x = torch.tensor([0.0, 9.9])
    assert module(x) is x


def test_the_scale_stays_positive_and_the_zero_point_inside():
    module = _LearnableFakeQuantize(MinMaxObserver, quant_max=15, scale=-3.0, zero_point=99.6)
    scale, zero_point = module.calculate_qparams()
    assert scale.item() == module.eps.item()
    assert zero_point.tolist() == [15]
    assert module.bitwidth == 4


def test_per_channel_parameters():
    module = _LearnableFakeQuantize(
        MovingAveragePerChannelMinMaxObserver, channel_len=3, ch_axis=1, qscheme=torch.per_channel_affine
    )
    module(torch.randn(2, 3))
    assert module.scale.shape == (3,)


def test_qparams_are_logged(caplog):
    module = _LearnableFakeQuantize(MinMaxObserver)
    with caplog.at_level(logging.INFO):
        module.observe_quant_params()
    assert "zero point" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_min": 5, "quant_max": 0}, "quant_min must be strictly less than quant_max"),
        ({"quant_min": -1, "quant_max": 5}, "quant_min out of bound"),
        ({"quant_min": 0, "quant_max": 500}, "quant_max out of bound"),
        ({"channel_len": 0}, "Channel size must be a positive integer"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(AssertionError, match=message):
        _LearnableFakeQuantize(MinMaxObserver, **arguments)
