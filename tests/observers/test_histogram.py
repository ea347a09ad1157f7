"""The histogram observer and its search."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings, strategies as st

from observers import (
    HistogramObserver,
    InvalidRequest,
    QuantizationWarning,
    Unsupported,
    histogram_counts,
    histogram_search,
    reductions,
)
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


@contextlib.contextmanager
def without_kernels():
    with pytest.MonkeyPatch.context() as patch:
        for module in (histogram_counts, histogram_search, reductions):
            patch.setattr(module, "kernel", lambda name: None)
        yield


def state_after(batches, **arguments):
    observer = HistogramObserver(**arguments)
    for batch in batches:
        observer(batch)
    return [*observer.state_dict().values(), *observer.calculate_qparams()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_kernels_and_torch_keep_the_same_state(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    shapes = st.sampled_from([(1,), (7,), (300,), (2, 3, 5, 4), (40_000,)])
    widths, shifts = st.sampled_from([1e-40, 1e-3, 1.0, 7.0, 1e30]), st.sampled_from([0.0, -0.5, 300.0])
    batches = []
    for shape in data.draw(st.lists(shapes, min_size=1, max_size=4)):
        x = torch.randn(shape) * data.draw(widths) + data.draw(shifts)
        x = data.draw(st.sampled_from([torch.clone, torch.relu, torch.round, torch.zeros_like]))(x)
        batches.append(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x)
    bins = data.draw(st.sampled_from([2048, 32]))
    with_kernels = state_after(batches, bins=bins)
    with without_kernels():
        expected = state_after(batches, bins=bins)
    for ours, theirs in zip(with_kernels, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_counted_as_their_float_values(dtype):
    x = torch.randn(50_000).to(dtype)
    for ours, theirs in zip(state_after([x, x * 2]), state_after([x.float(), (x * 2).float()]), strict=True):
        assert torch.equal(ours, theirs)


def test_the_range_may_grow_by_any_factor():
    observer = HistogramObserver()
    for factor in (1e-30, 1.0, 1e30):
        observer(torch.randn(1000) * factor)
    assert observer.histogram.shape == (2048,)
    assert observer.histogram.sum() == 3000
    assert observer.histogram.max() >= 2000


def test_views_with_gaps_are_counted():
    x = torch.randn(100, 100)
    for view in (x[:, ::3], x[5:, :7], x[:1].expand(50, 100), x.t()):
        for ours, theirs in zip(state_after([view]), state_after([view.contiguous()]), strict=True):
            assert torch.equal(ours, theirs)
