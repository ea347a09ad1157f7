"""Fake quantizers: rounding, switches, gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import observers
from observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    InvalidRequest,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QuantizationWarning,
)

PLAIN_AND_FUSED = [FakeQuantize, FusedMovingAvgObsFakeQuantize]
TOGGLERS = [
    (observers.disable_fake_quant, "fake_quant_enabled", 0),
    (observers.enable_fake_quant, "fake_quant_enabled", 1),
    (observers.disable_observer, "observer_enabled", 0),
    (observers.enable_observer, "observer_enabled", 1),
]


@pytest.mark.parametrize("kind", PLAIN_AND_FUSED)
def test_output_lies_on_the_grid_within_half_a_step(kind):
    module = kind()
    x = torch.randn(1000)
    y = module(x)
    steps = y / module.scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    # The zero point is rounded too, which shifts the ends by up to half a step more.
    assert (x - y).abs().max() <= module.scale * 1.01


@pytest.mark.parametrize("kind", PLAIN_AND_FUSED)
def test_gradient_is_one_inside_the_range_and_zero_outside(kind):
    module = kind()
    module(torch.tensor([-1.0, 1.0]))
    module.disable_observer()
    x = torch.tensor([-5.0, -0.5, 0.5, 5.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_with_everything_off_the_input_itself_comes_back():
    module = FakeQuantize()
    module.disable_fake_quant()
    module.disable_observer()
    x = torch.randn(3)
    assert module(x) is x


def test_observation_goes_on_with_rounding_off():
    module = FakeQuantize()
    module.disable_fake_quant()
    module(torch.tensor([0.0, 2.55]))
    assert module.scale.item() == pytest.approx(0.01)


def test_the_observers_range_counts_not_the_requested_one():
    module = observers.default_fake_quant()
    assert module.activation_post_process.quant_max == 127
    levels = torch.unique(module(torch.linspace(0, 1, 5000)))
    assert len(levels) == 128


@pytest.mark.parametrize("kind", PLAIN_AND_FUSED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_passes_and_keeps_its_dtype(kind, dtype):
    x = torch.randn(10, dtype=dtype, requires_grad=True)
    y = kind()(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("kind", PLAIN_AND_FUSED)
def test_empty_input_passes(kind):
    module = kind()
    x = torch.zeros(0, 3)
    if kind is FakeQuantize:
        with pytest.warns(QuantizationWarning, match="must run observer"):
            assert module(x).shape == (0, 3)
    else:
        assert module(x).shape == (0, 3)


def test_buffers_and_their_dtypes():
    plain, fused = FakeQuantize(), FusedMovingAvgObsFakeQuantize()
    assert plain.fake_quant_enabled.dtype == torch.uint8
    assert fused.fake_quant_enabled.dtype == torch.int64
    assert plain.zero_point.dtype == torch.int32
    assert observers.default_embedding_fake_quant().zero_point.dtype == torch.float32


def test_buffers_live_where_the_observer_does():
    for kind in PLAIN_AND_FUSED:
        module = kind(factory_kwargs={"device": "meta"})
        assert {buffer.device.type for buffer in module.buffers()} == {"meta"}


def test_per_channel_resizes_to_the_number_of_channels():
    module = FakeQuantize(MovingAveragePerChannelMinMaxObserver, ch_axis=1, qscheme=torch.per_channel_affine)
    module(torch.randn(2, 5, 3))
    assert module.scale.shape == module.zero_point.shape == (5,)
    assert module.is_per_channel


@pytest.mark.parametrize(
    ("toggle", "switch", "value"), TOGGLERS, ids=lambda p: getattr(p, "__name__", str(p))
)
@pytest.mark.parametrize("kind", PLAIN_AND_FUSED)
def test_togglers_work_through_apply_and_leave_other_modules_alone(kind, toggle, switch, value):
    model = nn.Sequential(nn.Linear(1, 1), kind(), nn.Sequential(kind()))
    for module in (model[1], model[2][0]):
        getattr(module, switch).fill_(1 - value)
    model.apply(toggle)
    assert getattr(model[1], switch).item() == value
    assert getattr(model[2][0], switch).item() == value


def test_fixed_qparams():
    module = observers.default_symmetric_fixed_qparams_fake_quant()
    module(torch.randn(10) * 100)
    assert module.scale.item() == 2 / 256
    assert module.zero_point.item() == 128
    assert module.calculate_qparams()[0] is module.scale


def test_calculate_qparams_of_the_fused_kind_is_the_observers_formula():
    module = observers.default_fused_wt_fake_quant()
    module(torch.tensor([-3.0, 1.0]))
    assert module.scale.item() == pytest.approx(3 / 128)
    assert module.calculate_qparams()[0].item() == pytest.approx(3 / 127.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_min": -1, "quant_max": 100}, "quant_min out of bound"),
        ({"quant_min": 0, "quant_max": 300}, "quant_max out of bound"),
        ({"quant_min": 100, "quant_max": 0}, "quant_min must be less than or equal to quant_max"),
        ({"quant_min": 0}, "quant_min=0 and quant_max=None must be given together"),
        (
            {"observer": MinMaxObserver.with_args(dtype=torch.qint8), "quant_min": 0, "quant_max": 255},
            "qint8",
        ),
    ],
)
def test_a_range_outside_the_dtype_is_an_error(arguments, message):
    FakeQuantize(quant_min=0, quant_max=255)
    with pytest.raises(AssertionError, match=message):
        FakeQuantize(**arguments)


def test_wrong_observers_are_errors_that_name_them():
    with pytest.raises(AssertionError, match=r"must be a FixedQParamsObserver; got MinMaxObserver"):
        FixedQParamsFakeQuantize(MinMaxObserver)
    FixedQParamsFakeQuantize(FixedQParamsObserver.with_args(scale=1.0, zero_point=0))
    with pytest.raises(
        AssertionError, match=r"only works with MovingAverageMinMaxObserver.*got MinMaxObserver"
    ):
        FusedMovingAvgObsFakeQuantize(MinMaxObserver)
    with pytest.raises(NotImplementedError, match="float32"):
        FakeQuantize(dtype=torch.float32, quant_min=0, quant_max=1)


def test_rounding_per_channel_before_observing_is_one_clear_error():
    module = observers.default_per_channel_weight_fake_quant()
    module.disable_observer()
    with pytest.raises(InvalidRequest, match=r"1 scale\(s\).*\[4, 2\].*observe"):
        module(torch.randn(4, 2))


def test_a_schemeless_observer_counts_as_per_tensor():
    module = FakeQuantize(
        observer=observers.PlaceholderObserver, dtype=torch.quint8, quant_min=0, quant_max=7
    )
    assert not module.is_per_channel
    assert module.quant_max == 7
