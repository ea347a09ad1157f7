"""The four min/max observers: what they keep, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from observers import (
    InvalidRequest,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    QuantizationWarning,
    Unsupported,
)

WHOLE = [MinMaxObserver, MovingAverageMinMaxObserver]
CHANNEL = [PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver]
ALL = WHOLE + CHANNEL
BATCH = torch.tensor([[-1.0, 2.0], [0.5, 4.0]])


@pytest.mark.parametrize("kind", ALL)
def test_forward_returns_the_input_itself_and_keeps_gradients(kind):
    x = BATCH.clone().requires_grad_()
    y = kind()(x)
    assert y is x
    assert not any(buffer.requires_grad for buffer in kind().buffers())


@pytest.mark.parametrize("kind", ALL)
def test_buffers_are_updated_in_place(kind):
    observer = kind()
    low, high = observer.min_val, observer.max_val
    observer(BATCH)
    observer(BATCH * 2)
    assert observer.min_val is low
    assert observer.max_val is high


def test_running_range_covers_all_batches():
    observer = MinMaxObserver()
    observer(torch.tensor([-1.0, 1.0]))
    observer(torch.tensor([0.0, 3.0]))
    assert (observer.min_val.item(), observer.max_val.item()) == (-1.0, 3.0)
    assert observer.min_val.shape == torch.Size([])


def test_moving_average_takes_the_first_batch_and_moves_by_its_constant():
    observer = MovingAverageMinMaxObserver(averaging_constant=0.25)
    for top in (1.0, 5.0, 5.0):
        observer(torch.tensor([0.0, top]))
    assert observer.max_val.item() == pytest.approx(2.75)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_range_along_any_axis(axis):
    x = torch.randn(3, 4, 5)
    observer = PerChannelMinMaxObserver(ch_axis=axis)
    observer(x)
    others = [dim for dim in range(3) if dim != axis % 3]
    assert torch.equal(observer.min_val, x.amin(others))
    assert torch.equal(observer.max_val, x.amax(others))


@pytest.mark.parametrize("kind", ALL)
def test_empty_input_is_no_observation(kind):
    observer = kind()
    observer(torch.zeros(0, 3))
    with pytest.warns(QuantizationWarning, match="must run observer before calling calculate_qparams"):
        scale, zero_point = observer.calculate_qparams()
    assert (scale.tolist(), zero_point.tolist()) == ([1.0], [0])


@pytest.mark.parametrize("kind", ALL)
def test_reset_forgets(kind):
    observer = kind()
    fresh = kind().state_dict()
    observer(BATCH)
    observer.reset_min_max_vals()
    for name, value in observer.state_dict().items():
        assert torch.equal(value, fresh[name])
    observer(BATCH)
    assert observer.max_val.max().item() == 4.0
    assert observer.min_val is not observer.max_val


@pytest.mark.parametrize("kind", ALL)
def test_other_dtypes_are_cast_to_that_of_the_buffers(kind):
    observer = kind()
    observer(BATCH.double())
    observer(BATCH.half())
    assert observer.min_val.dtype == torch.float32
    observer = kind(factory_kwargs={"dtype": torch.float64})
    observer(BATCH)
    assert observer.calculate_qparams()[0].dtype == torch.float64


@pytest.mark.parametrize("kind", ALL)
def test_meta_tensors_pass(kind):
    observer = kind(factory_kwargs={"device": "meta"}).to("meta")
    observer(torch.empty(2, 3, device="meta"))
    assert observer.min_val.is_meta


@pytest.mark.parametrize("kind", ALL)
def test_no_warning_for_reduce_range(kind):
    assert kind(dtype=torch.qint8, reduce_range=True).quant_max == 63


@pytest.mark.parametrize("kind", ALL)
def test_extra_repr_shows_the_range(kind):
    assert "min_val=" in repr(kind())


@pytest.mark.parametrize("kind", WHOLE)
def test_per_tensor_observers_refuse_per_channel_schemes(kind):
    kind(qscheme=torch.per_tensor_symmetric)
    with pytest.raises(NotImplementedError, match=rf"{kind.__name__}'s qscheme only support.*PerChannel"):
        kind(qscheme=torch.per_channel_affine)


@pytest.mark.parametrize("kind", CHANNEL)
def test_per_channel_observers_refuse_per_tensor_schemes_and_dynamic(kind):
    with pytest.raises(NotImplementedError, match=rf"{kind.__name__}'s qscheme only support"):
        kind(qscheme=torch.per_tensor_affine)
    with pytest.raises(Unsupported, match="doesn't support dynamic"):
        kind(is_dynamic=True)


@pytest.mark.parametrize("kind", ALL)
def test_reduced_symmetric_quint8_is_refused(kind):
    scheme = torch.per_tensor_symmetric if kind in WHOLE else torch.per_channel_symmetric
    kind(qscheme=scheme, reduce_range=True, dtype=torch.qint8)
    with pytest.raises(NotImplementedError, match="Cannot reduce range for symmetric"):
        kind(qscheme=scheme, reduce_range=True, dtype=torch.quint8)


def test_a_dynamic_moving_average_must_have_no_memory():
    assert MovingAverageMinMaxObserver(is_dynamic=True, averaging_constant=1).is_dynamic
    with pytest.raises(NotImplementedError, match="averaging_constant=1"):
        MovingAverageMinMaxObserver(is_dynamic=True)


@pytest.mark.parametrize("kind", CHANNEL)
@pytest.mark.parametrize(("axis", "shape"), [(0, (4,)), (3, (2, 2)), (-3, (2, 2))])
def test_wrong_rank_or_axis_names_both_and_changes_nothing(kind, axis, shape):
    observer = kind(ch_axis=axis)
    with pytest.raises(InvalidRequest, match=rf"ch_axis={axis}.*shape"):
        observer(torch.zeros(shape))
    assert observer.min_val.numel() == 0


@pytest.mark.parametrize("kind", CHANNEL)
def test_another_number_of_channels_is_an_error_that_says_how_to_go_on(kind):
    observer = kind()
    observer(torch.randn(3, 2))
    before = observer.min_val.clone()
    with pytest.raises(InvalidRequest, match=r"3 channels.*reset_min_max_vals"):
        observer(torch.randn(1, 2))
    assert torch.equal(observer.min_val, before)
