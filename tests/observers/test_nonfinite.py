"""NaN and infinity never get into the statistics; one warning per observer counts them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import observers
from observers import QuantizationWarning, has_seen_data
from observers.finite import is_finite_range
from tests.support import quiet_jit

BAD = [math.nan, math.inf, -math.inf]
FACTORIES = {
    "MinMax": observers.MinMaxObserver,
    "MovingAverage": observers.MovingAverageMinMaxObserver,
    "PerChannel": observers.PerChannelMinMaxObserver,
    "MovingAveragePerChannel": observers.MovingAveragePerChannelMinMaxObserver,
    "Histogram": observers.HistogramObserver,
    "FakeQuantize": observers.FakeQuantize,
    "FakeQuantizePerChannel": observers.default_per_channel_weight_fake_quant,
    "Fused": observers.FusedMovingAvgObsFakeQuantize,
    "FusedPerChannel": observers.default_fused_per_channel_wt_fake_quant,
}
kinds = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES.keys())


def spoiled(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor with two bad values inside each row's range, and the same tensor with finite ones there."""
    clean = torch.tensor([[-1.0, 0.25, 2.0, 0.5], [-3.0, 0.75, 1.0, 0.1]])
    dirty = clean.clone()
    dirty[:, 1] = value
    return dirty, clean


@kinds
@pytest.mark.parametrize("value", BAD)
def test_the_range_is_that_of_the_finite_values(make, value):
    dirty, clean = spoiled(value)
    module, reference = make(), make()
    for factor in (1.0, 2.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuantizationWarning)
            module(dirty * factor)
        reference(clean * factor)
    for name, expected in reference.state_dict().items():
        if not name.endswith("histogram"):
            assert torch.equal(module.state_dict()[name], expected), name
    assert torch.isfinite(module.calculate_qparams()[0]).all()


@kinds
def test_one_warning_per_observer_counts_what_was_ignored(make):
    dirty, _ = spoiled(math.nan)
    module, other = make(), make()
    with pytest.warns(QuantizationWarning, match="ignored 2 of 8 values"):
        module(dirty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(dirty)
    with pytest.warns(QuantizationWarning, match="ignored 2 of 8 values"):
        other(dirty)


@kinds
@pytest.mark.filterwarnings("ignore::observers.QuantizationWarning")
def test_input_without_any_finite_value_is_no_observation(make):
    module = make()
    fresh = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        module(torch.full((2, 3), math.nan))
    except observers.InvalidRequest as error:
        # A per-channel fake quantizer cannot round without having observed.
        assert "observe finite data" in str(error)
    assert has_seen_data(module) is False
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name


@pytest.mark.parametrize("make", [FACTORIES["PerChannel"], FACTORIES["MovingAveragePerChannel"]])
@pytest.mark.filterwarnings("ignore::observers.QuantizationWarning")
def test_a_channel_without_finite_values_keeps_its_range(make):
    observer = make()
    observer(torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]))
    observer(torch.tensor([[-1.0, 1.0], [math.nan, math.inf]]))
    assert observer.max_val.tolist() == [1.0, 2.0]
    fresh = make()
    fresh(torch.tensor([[-1.0, 1.0], [math.nan, math.inf]]))
    assert fresh.max_val.tolist() == [1.0, 0.0]


def test_what_overflows_the_observers_dtype_counts_as_infinite():
    observer = observers.MinMaxObserver()
    with pytest.warns(QuantizationWarning, match="ignored 1 of 2"):
        observer(torch.tensor([1.0, 1e300], dtype=torch.float64))
    assert observer.max_val.item() == 1.0


def test_a_finite_range_too_wide_to_subtract_is_kept_without_a_warning():
    low, high = torch.tensor(-3e38), torch.tensor(3e38)
    assert not is_finite_range(low, high)
    observer = observers.MinMaxObserver()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observer(torch.stack([low, high]))
    assert (observer.min_val, observer.max_val) == (low, high)


def test_the_gradient_passes_the_fused_fake_quantizer():
    module = observers.FusedMovingAvgObsFakeQuantize()
    x = torch.tensor([-1.0, math.nan, 2.0], requires_grad=True)
    with pytest.warns(QuantizationWarning):
        module(x).sum().backward()
    assert x.grad is not None
    assert x.grad[[0, 2]].tolist() == [1.0, 1.0]


def test_the_fused_fake_quantizer_with_rounding_off_passes_its_input():
    module = observers.FusedMovingAvgObsFakeQuantize()
    module.disable_fake_quant()
    x = torch.tensor([-1.0, math.inf, 2.0])
    with pytest.warns(QuantizationWarning):
        y = module(x)
    assert torch.equal(x, y)
    assert module.activation_post_process.max_val.item() == 2.0
    assert module.scale.item() == 1.0


@pytest.mark.parametrize("value", BAD)
@kinds
def test_scripted_modules_ignore_them_too(make, value):
    dirty, clean = spoiled(value)
    with quiet_jit():
        scripted = torch.jit.script(make())
    reference = make()
    scripted(dirty)
    reference(clean)
    for name, expected in reference.state_dict().items():
        if not name.endswith("histogram"):
            assert torch.equal(scripted.state_dict()[name], expected), name


@pytest.mark.parametrize("make", [observers.MinMaxObserver, observers.PerChannelMinMaxObserver])
def test_traced_modules_drop_a_batch_that_is_not_finite(make):
    dirty, clean = spoiled(math.inf)
    observer = make()
    observer(clean)
    before = observer.max_val.clone()
    with quiet_jit(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(observer, clean, check_trace=False)
    traced(dirty)
    assert torch.equal(traced.max_val, before)
