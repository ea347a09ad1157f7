"""Ranges of tensors in any memory format, with the kernels and without."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from observers import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    reductions,
)
from observers.reductions import channel_range, memory_order, whole_range
from tests.support import quiet_jit


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def way(request, monkeypatch):
    """Take both ways; the first is the second where there is no compiled library."""
    monkeypatch.setattr(reductions, "_FEW", 0)
    if request.param == "torch":
        monkeypatch.setattr(reductions, "kernel", lambda name: None)


def same(ours, theirs) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def views(x: torch.Tensor) -> list[torch.Tensor]:
    """Contiguous, in other orders of memory, with gaps, reversed in meaning, with overlaps."""
    found = [x, x.transpose(0, -1), x.movedim(1, -1), x[..., ::2], x[1:], x[:, :1].expand_as(x)]
    if x.dim() == 4:
        found.append(x.contiguous(memory_format=torch.channels_last))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 70, 3, 3), (3, 1, 5), (40, 6), (2, 3, 300)], ids=str)
def test_any_axis_of_any_memory_format(shape, dtype):
    for x in views(torch.randn(shape).to(dtype)):
        assert same(whole_range(x), torch.aminmax(x))
        for axis in range(x.dim()):
            others = [dim for dim in range(x.dim()) if dim != axis]
            assert same(channel_range(x, axis), (x.amin(others), x.amax(others)))


@pytest.mark.parametrize("axis", [0, 1])
def test_nan_stays_in_its_channel(axis):
    x = torch.arange(20.0).view(4, 5)
    x[2, 3] = math.nan
    low, high = channel_range(x, axis)
    assert low.isnan().nonzero().tolist() == high.isnan().nonzero().tolist() == [[(2, 3)[axis]]]
    assert all(bound.isnan() for bound in whole_range(x))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_memory_order_makes_a_dense_tensor_contiguous(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    x = torch.empty(shape).permute(order)
    found = memory_order(x)
    assert found is not None
    assert x.permute(found).is_contiguous()


def test_memory_with_gaps_or_overlaps_has_no_order():
    assert memory_order(torch.empty(4, 6)[:, ::2]) is None
    assert memory_order(torch.empty(4, 6)[:, 1:]) is None
    assert memory_order(torch.empty(4, 1).expand(4, 6)) is None
    assert memory_order(torch.empty(4, 6)[1:]) == [0, 1]


class Both(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return whole_range(x), channel_range(x, 1)


def test_scripts_traces_and_compiles():
    x = torch.randn(3, 4, 5).transpose(0, 1)
    expected = torch.aminmax(x)
    with quiet_jit():
        made = [
            torch.jit.script(Both()),
            torch.jit.trace(Both(), x.clone()),
            torch.compile(Both(), backend="eager"),
        ]
        for module in made:
            whole, channel = module(x)
            assert same(whole, expected)
            assert same(channel, (x.amin((0, 2)), x.amax((0, 2))))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool], ids=str
)
@pytest.mark.parametrize("of_buffers", [torch.float32, torch.float64], ids=str)
def test_observers_see_the_range_of_the_converted_input(dtype, of_buffers):
    x = (torch.randn(6, 7) * 3).to(dtype)
    for kind in (MinMaxObserver, PerChannelMinMaxObserver):
        ours = kind(factory_kwargs={"dtype": of_buffers})
        converted = kind(factory_kwargs={"dtype": of_buffers})
        assert ours(x) is x
        converted(x.to(of_buffers))
        assert same((ours.min_val, ours.max_val), (converted.min_val, converted.max_val))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("average", [False, True], ids=["running", "average"])
def test_batches_are_merged_by_the_formula(dtype, axis, average):
    kinds = (MinMaxObserver, MovingAverageMinMaxObserver)
    if axis is not None:
        kinds = (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
    options = {} if axis is None else {"ch_axis": axis}
    for number in range(len(views(torch.zeros(2, 3, 4, 6)))):
        observer, so_far = kinds[average](**options), None
        for scale in (1, 3, 0.5):
            x = views((torch.randn(2, 3, 4, 6) * scale).to(dtype))[number]
            others = list(range(4))
            if axis is not None:
                del others[axis]
            batch = x.amin(others).float(), x.amax(others).float()
            if so_far is None:
                so_far = batch
            elif average:
                so_far = tuple(old + 0.01 * (new - old) for old, new in zip(so_far, batch, strict=True))
            else:
                so_far = torch.min(so_far[0], batch[0]), torch.max(so_far[1], batch[1])
            observer(x)
            assert same((observer.min_val, observer.max_val), so_far)


def test_a_subclass_merges_in_its_own_way():
    class Last(MinMaxObserver):
        def _merged(self, low, high):
            return low, high

    observer = Last()
    observer(torch.tensor([-5.0, 5.0]))
    observer(torch.tensor([1.0, 2.0]))
    assert (observer.min_val.item(), observer.max_val.item()) == (1, 2)
