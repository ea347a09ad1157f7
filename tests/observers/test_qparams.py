"""From a range to scale and zero point: hypothesis on the arithmetic, and wrong ranges next to right ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from observers import InvalidRequest, MinMaxObserver, QuantizationWarning, Unsupported
from observers.base import (
    calculate_qmin_qmax,
    check_min_max_valid,
    determine_qparams,
    qparams_from_range,
    validate_qmin_qmax,
)
from observers.dtypes import FACTS, facts_of, integer_info, symmetric_zero_point, to_underlying_dtype

EPS = torch.tensor([torch.finfo(torch.float32).eps])
RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.quint4x2: (0, 15)}

bounds = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(bounds, bounds).map(sorted)
dtypes = st.sampled_from(sorted(RANGES, key=str))
schemes = st.sampled_from([torch.per_tensor_affine, torch.per_tensor_symmetric])


def qparams(low, high, dtype, qscheme):
    quant_min, quant_max = RANGES[dtype]
    found = qparams_from_range(
        torch.tensor(low), torch.tensor(high), quant_min, quant_max, dtype, EPS, False, qscheme
    )
    scale, zero_point = found
    return scale.item(), int(zero_point.item()), quant_min, quant_max


def round_trip(x, scale, zero_point, quant_min, quant_max):
    q = min(max(round(x / scale) + zero_point, quant_min), quant_max)
    return (q - zero_point) * scale


@settings(max_examples=200, deadline=None)
@given(ranges, dtypes, schemes)
def test_scale_is_positive_and_zero_is_exact(span, dtype, qscheme):
    scale, zero_point, quant_min, quant_max = qparams(*span, dtype, qscheme)
    assert scale > 0
    assert math.isfinite(scale)
    if dtype != torch.quint4x2 or qscheme == torch.per_tensor_affine:
        assert quant_min <= zero_point <= quant_max
    assert round_trip(0.0, scale, zero_point, quant_min, quant_max) == 0.0


@settings(max_examples=200, deadline=None)
@given(ranges, dtypes, st.floats(0, 1))
def test_affine_error_inside_the_range_is_at_most_half_a_step_and_the_rounding_of_the_zero_point(
    span, dtype, share
):
    low, high = span
    scale, zero_point, quant_min, quant_max = qparams(low, high, dtype, torch.per_tensor_affine)
    # Only what the integers reach: rounding the zero point shifts the range by up to half a step.
    reach_low, reach_high = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
    x = min(max(low + share * (high - low), reach_low), reach_high)
    error = abs(round_trip(x, scale, zero_point, quant_min, quant_max) - x)
    assert error <= scale * (0.5 + 1e-3) + 1e-30
    assert reach_low - min(low, 0.0) <= scale * (0.5 + 1e-3)
    assert max(high, 0.0) - reach_high <= scale * (0.5 + 1e-3)


@settings(max_examples=200, deadline=None)
@given(ranges)
def test_symmetric_error_inside_the_range_is_at_most_half_a_step(span):
    low, high = span
    scale, zero_point, quant_min, quant_max = qparams(low, high, torch.qint8, torch.per_tensor_symmetric)
    assert zero_point == 0
    # The scale is bound / 127.5, so both ends lie within half a step of the outermost levels.
    for x in (low, high, (low + high) / 2):
        error = abs(round_trip(x, scale, zero_point, quant_min, quant_max) - x)
        assert error <= scale * (0.5 + 1e-3)


@settings(max_examples=100, deadline=None)
@given(ranges, st.floats(1.0, 100.0, width=32), dtypes, schemes)
def test_a_wider_range_never_has_a_smaller_scale(span, factor, dtype, qscheme):
    low, high = span
    narrow, *_ = qparams(low, high, dtype, qscheme)
    wide, *_ = qparams(min(low * factor, low), max(high * factor, high), dtype, qscheme)
    assert wide >= narrow


@settings(max_examples=100, deadline=None)
@given(ranges, dtypes)
def test_quantizing_is_monotone(span, dtype):
    found = qparams(*span, dtype, torch.per_tensor_affine)
    values = [round_trip(x, *found) for x in torch.linspace(span[0], span[1], 50).tolist()]
    assert values == sorted(values)


@settings(max_examples=50, deadline=None)
@given(st.lists(ranges, min_size=1, max_size=5), st.sampled_from(["affine", "symmetric"]))
def test_channels_are_independent(spans, kind):
    lows = torch.tensor([low for low, _ in spans])
    highs = torch.tensor([high for _, high in spans])
    per_channel = getattr(torch, f"per_channel_{kind}")
    scale, zero_point = qparams_from_range(lows, highs, -128, 127, torch.qint8, EPS, False, per_channel)
    for i, (low, high) in enumerate(spans):
        one = qparams(low, high, torch.qint8, getattr(torch, f"per_tensor_{kind}"))
        assert (scale[i].item(), zero_point[i].item()) == one[:2]


def test_float_qparams_map_the_range_exactly_to_the_levels():
    low, high = torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 3.0])
    scheme = torch.per_channel_affine_float_qparams
    scale, zero_point = qparams_from_range(low, high, 0, 15, torch.quint4x2, EPS, False, scheme)
    torch.testing.assert_close(scale, torch.tensor([0.2, 1.0]))
    torch.testing.assert_close(zero_point, torch.tensor([5.0, -3.0]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1.0, 2.0, (0.011764706, 85)), (3.0, 3.0, (0.0117647, 0)), (-3.0, -3.0, (0.0117647, 255))],
)
def test_known_values(low, high, expected):
    scale, zero_point, *_ = qparams(low, high, torch.quint8, torch.per_tensor_affine)
    assert scale == pytest.approx(expected[0], rel=1e-6)
    assert zero_point == expected[1]


def test_a_range_of_zero_has_the_smallest_scale():
    scale, zero_point, *_ = qparams(0.0, 0.0, torch.quint8, torch.per_tensor_affine)
    assert (scale, zero_point) == (EPS.item(), 0)


def test_determine_qparams_returns_double_and_int64():
    args = (0, 255, torch.quint8, EPS, False)
    scale, zero_point = determine_qparams(torch.tensor(-1.0), torch.tensor(2.0), *args)
    assert (scale.dtype, zero_point.dtype) == (torch.float64, torch.int64)
    with pytest.warns(QuantizationWarning, match="must run observer"):
        nothing = determine_qparams(torch.tensor(math.inf), torch.tensor(-math.inf), *args)
    assert [t.tolist() for t in nothing] == [[1.0], [0]]


def test_symmetric_uint16_has_its_zero_in_the_middle_everywhere():
    observer = MinMaxObserver(dtype=torch.uint16, qscheme=torch.per_tensor_symmetric)
    observer(torch.tensor([-1.0, 2.0]))
    assert observer.calculate_qparams()[1].item() == 2**15
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    args = (0, 2**16 - 1, torch.uint16, EPS, False, torch.per_tensor_symmetric)
    assert determine_qparams(low, high, *args)[1].item() == 2**15


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_a_range_upside_down_or_nan_is_an_error(low, high):
    assert check_min_max_valid(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(AssertionError, match="should be less than max"):
        check_min_max_valid(torch.tensor(low), torch.tensor(high))
    with pytest.raises(InvalidRequest, match="should be less than max"):
        check_min_max_valid(torch.tensor([0.0, low]), torch.tensor([0.0, high]))


@pytest.mark.parametrize(
    ("quant_min", "quant_max", "message"),
    [
        (5, 10, "Used-specified quantization range must include 0."),
        (-10, -5, "Used-specified quantization range must include 0."),
        (10, 5, "Used-specified quantization range must include 0."),
        (0, 0, "qmin must be strictly less than qmax"),
    ],
)
def test_a_range_without_zero_or_levels_is_an_error(quant_min, quant_max, message):
    validate_qmin_qmax(-1, 1)
    with pytest.raises(AssertionError, match=message):
        validate_qmin_qmax(quant_min, quant_max)
    with pytest.raises(InvalidRequest, match=message):
        MinMaxObserver(quant_min=quant_min, quant_max=quant_max)


@pytest.mark.parametrize("given", [{"quant_min": 0}, {"quant_max": 127}])
def test_one_bound_without_the_other_is_an_error_that_names_both(given):
    MinMaxObserver(quant_min=0, quant_max=127)
    with pytest.raises(InvalidRequest, match=r"quant_min=.*quant_max=.*together"):
        MinMaxObserver(**given)


def test_a_range_with_more_levels_than_the_dtype_is_an_error():
    assert calculate_qmin_qmax(-128, 127, True, torch.qint8, False) == (-128, 127)
    with pytest.raises(InvalidRequest, match="maximum bit range"):
        calculate_qmin_qmax(-128, 128, True, torch.qint8, False)
    with pytest.raises(InvalidRequest, match="maximum bit range"):
        calculate_qmin_qmax(0, 2**33, True, torch.qint32, False)


@pytest.mark.parametrize("dtype", FACTS, ids=str)
def test_the_table_of_dtypes(dtype):
    facts = facts_of(dtype)
    assert facts.bounds.low <= 0 < facts.bounds.high
    assert facts.bounds.low <= facts.reduced.low <= facts.reduced.high <= facts.bounds.high
    assert calculate_qmin_qmax(None, None, False, dtype, False) == tuple(facts.bounds)
    assert calculate_qmin_qmax(None, None, False, dtype, True) == tuple(facts.reduced)
    if facts.storage.is_floating_point or dtype == torch.quint4x2:
        return
    info = torch.iinfo(facts.storage)
    assert facts.bounds == (info.min, info.max)
    assert to_underlying_dtype(dtype) == facts.storage
    # Symmetric schemes put their zero in the middle: half the levels up for unsigned dtypes.
    middle = 0 if info.min < 0 else (info.max + 1) // 2
    assert symmetric_zero_point(dtype, info.min, info.max, False) == middle


def test_dtypes_without_integer_levels_are_refused_by_name():
    assert integer_info(torch.quint8).bits == 8
    with pytest.raises(NotImplementedError, match=r"float8_e5m2.*torch\.quint8"):
        integer_info(torch.float8_e5m2)
    with pytest.raises(Unsupported):
        integer_info(torch.float32)
    with pytest.raises(AssertionError, match=r"Unsupported dtype: torch\.float32"):
        to_underlying_dtype(torch.float32)
    with pytest.raises(AssertionError, match=r"Default Observer only works for .*got dtype=torch\.float32"):
        MinMaxObserver(dtype=torch.float32)
