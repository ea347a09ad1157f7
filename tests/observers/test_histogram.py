"""The histogram observer and its search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from observers import HistogramObserver, InvalidRequest, QuantizationWarning, Unsupported
from observers.histogram_search import (
    as_float32,
    best_bins,
    first_at_least,
    last_at_most,
    quantization_errors,
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=30).map(torch.tensor),
        min_size=1,
        max_size=4,
    )
)
def test_every_value_is_counted_and_covered(batches):
    observer = HistogramObserver(bins=64)
    for batch in batches:
        observer(batch.float())
    everything = torch.cat(batches)
    assert observer.min_val == everything.min()
    assert observer.max_val == everything.max()
    torch.testing.assert_close(observer.histogram.sum(), torch.tensor(float(everything.numel())))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(-1, 21), st.data())
def test_the_binary_searches_agree_with_a_walk(counts, bound, data):
    ascending = [float(c) for c in sorted(counts)]
    start = data.draw(st.integers(0, len(counts) - 1))
    end = data.draw(st.integers(start, len(counts) - 1))
    left = start
    while left < end and ascending[left] < bound:
        left += 1
    right = end
    while right > start and ascending[right] > bound:
        right -= 1
    assert first_at_least(ascending, bound, start, end) == left
    assert last_at_most(ascending, bound, start, end) == right


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-20, 1e20))
def test_rounding_to_float32_is_that_of_torch(value):
    assert as_float32(value) == torch.tensor(value, dtype=torch.float32).item()


def test_errors_of_several_ranges_are_those_of_each():
    histogram = torch.rand(512)
    starts, ends = [0, 3, 100], [511, 500, 300]
    together = quantization_errors(histogram, 0.01, starts, ends, 256)
    alone = [
        quantization_errors(histogram, 0.01, [s], [e], 256)[0] for s, e in zip(starts, ends, strict=True)
    ]
    assert together == alone
    observer = HistogramObserver(bins=512)
    observer(torch.rand(100))
    assert isinstance(observer._compute_quantization_error(0, 511), float)


@pytest.mark.parametrize("batch", [1, 3, 8, 1000])
def test_the_search_does_not_depend_on_how_many_ranges_are_judged_at_once(batch):
    histogram = torch.histc(torch.randn(20000), 2048)
    assert best_bins(histogram, 0.01, 256, batch=batch) == best_bins(histogram, 0.01, 256)


def test_an_outlier_is_cut_off():
    observer = HistogramObserver()
    observer(torch.cat([torch.randn(1_000_000), torch.tensor([20.0])]))
    low, high = observer._non_linear_param_search()
    assert high < 10
    assert low < -2


def test_buffers_are_updated_in_place():
    observer = HistogramObserver(bins=16)
    before = [observer.histogram, observer.min_val, observer.max_val]
    observer(torch.randn(5))
    observer(torch.randn(50) * 9)
    after = [observer.histogram, observer.min_val, observer.max_val]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_a_constant_then_others():
    observer = HistogramObserver(bins=8)
    observer(torch.ones(4))
    observer(torch.ones(4))
    observer(torch.zeros(2))
    assert observer.histogram.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_dtypes_are_counted(dtype):
    observer = HistogramObserver(bins=8)
    x = torch.arange(8).to(dtype)
    assert observer(x) is x
    assert observer.histogram.tolist() == [1.0] * 8


def test_a_subclass_may_search_its_own_way():
    class Everything(HistogramObserver):
        def _non_linear_param_search(self):
            return self.min_val, self.max_val

    observer = Everything()
    observer(torch.tensor([-1.0, 1.55]))
    assert observer.calculate_qparams()[0].item() == pytest.approx(0.01)


def test_unobserved_and_reset():
    observer = HistogramObserver(bins=8)
    with pytest.warns(QuantizationWarning, match="must run observer before calling calculate_qparams"):
        assert observer.calculate_qparams()[0].item() == 1.0
    observer(torch.randn(10))
    observer.reset_min_max_vals()
    assert observer.histogram.sum() == 0
    with pytest.warns(QuantizationWarning):
        observer.calculate_qparams()


def test_what_it_refuses():
    with pytest.raises(NotImplementedError, match="HistogramObserver's qscheme only support"):
        HistogramObserver(qscheme=torch.per_channel_affine)
    with pytest.raises(NotImplementedError, match="doesn't support dynamic"):
        HistogramObserver(is_dynamic=True)
    with pytest.raises(Unsupported, match="float8"):
        HistogramObserver(dtype=torch.float8_e5m2)
    observer = HistogramObserver(bins=8)
    with pytest.raises(InvalidRequest, match="must be scalar"):
        observer.reset_histogram(torch.ones(2), torch.ones(2), torch.ones(2))
    observer(torch.randn(5))
    observer.bins = 9
    with pytest.raises(AssertionError, match="bins mismatch"):
        observer.calculate_qparams()
