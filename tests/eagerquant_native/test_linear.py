"""Packed weights and the dynamic linear kernel, at every level of CPU, against torch's FBGEMM operator."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from eagerquant_native import kernel, levels
from quantization.backends import native_linear
from quantization.backends.engine_choice import engine
from quantization.backends.native_linear import PER_ROW, REDUCE_RANGE, RELU
from tests.support import ENGINES

_q = torch.ops.quantized
LEVELS = [level for level in levels() if kernel("linear_dynamic", level)]
FBGEMM = pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no FBGEMM")
# Rows around the sizes of the kernels' blocks, and depths and widths that fill none of them.
ROWS = [1, 2, 5, 6, 7, 16, 17, 32, 33, 100]
SHAPES = [(64, 64), (384, 130), (1, 1), (3, 130), (257, 33), (100, 37)]


def quantized(n: int, k: int, per_channel: bool) -> Tensor:
    weight = torch.randn(n, k)
    if not per_channel:
        return torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127.5, 0, torch.qint8)
    scales = weight.abs().amax(1).double() / 127.5
    return torch.quantize_per_channel(weight, scales, torch.zeros(n, dtype=torch.int64), 0, torch.qint8)


def product(level: str, packed: Tensor, x: Tensor, n: int, flags: int) -> Tensor | None:
    y = torch.full((x.size(0), n), math.nan)
    run: Any = kernel("linear_dynamic", level)
    return None if run(packed.data_ptr(), x.data_ptr(), x.size(0), flags, y.data_ptr()) else y


def fbgemm_pack(weight: Tensor, bias: Tensor | None) -> Any:
    with engine("fbgemm"):
        return _q.linear_prepack(weight, bias)


def fbgemm(weight: Tensor, bias: Tensor | None, x: Tensor, reduce_range: bool) -> Tensor:
    return _q.linear_dynamic(x, fbgemm_pack(weight, bias), reduce_range)


def inputs(rows: int, k: int) -> dict[str, Tensor]:
    x = torch.randn(rows, k)
    return {
        "both signs": x,
        "positive": x.abs() + 1,
        "negative": -50 * x.abs(),
        "tiny": x * 1e-6,
        "zeros": x * 0,
        "huge": x * 1e30,
    }


@FBGEMM
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_those_of_fbgemm(level: str, per_channel: bool, shape: tuple[int, int]) -> None:
    k, n = shape
    weight, bias = quantized(n, k, per_channel), torch.randn(n)
    for given_bias in (bias, None):
        packed = native_linear.pack(weight, given_bias)
        assert packed is not None
        for rows in ROWS:
            for flags in (0, REDUCE_RANGE):
                for kind, x in inputs(rows, k).items():
                    expected = fbgemm(weight, given_bias, x, bool(flags))
                    found = product(level, packed, x, n, flags)
                    assert found is not None and torch.equal(found, expected), (kind, rows, flags)


GRIDS = [(0.02, 0, 0.05, 0), (0.02, 37, 0.5, 64), (0.1, 255, 0.003, 255), (0.013, 128, 0.3, 3)]


@FBGEMM
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("shape", [*SHAPES, (512, 1000)], ids=str)
def test_static_numbers_are_those_of_fbgemm(level: str, per_channel: bool, shape: tuple[int, int]) -> None:
    k, n = shape
    weight, bias, run = quantized(n, k, per_channel), torch.randn(n), kernel("linear_static", level)
    assert run is not None
    for given_bias in (bias, None):
        packed, theirs = native_linear.pack(weight, given_bias), fbgemm_pack(weight, given_bias)
        assert packed is not None
        for rows in ROWS:
            for x_scale, x_zero, scale, zero in GRIDS:
                x = torch.quantize_per_tensor(torch.randn(rows, k), x_scale, x_zero, torch.quint8)
                for flags, operator in ((0, _q.linear), (RELU, _q.linear_relu)):
                    y = torch.empty(rows, n, dtype=torch.uint8)
                    failed = run(
                        packed.data_ptr(),
                        x.data_ptr(),
                        rows,
                        x_scale,
                        x_zero,
                        scale,
                        zero,
                        flags,
                        y.data_ptr(),
                    )
                    assert not failed
                    assert torch.equal(y, operator(x, theirs, scale, zero).int_repr()), (rows, x_zero, flags)


@FBGEMM
@pytest.mark.parametrize("level", LEVELS)
def test_ties_round_as_in_fbgemm(level: str) -> None:
    """Inputs that lie half way between two codes, on which one bit of difference would show."""
    weight = torch.quantize_per_tensor(torch.eye(64), 1.0, 0, torch.qint8)
    packed = native_linear.pack(weight, None)
    assert packed is not None
    for _ in range(50):
        x = torch.randn(8, 64)
        scale, _ = torch._choose_qparams_per_tensor(x, True)
        ties = ((torch.randint(-60, 60, (8, 64)) + 0.5) * scale).clamp(x.min(), x.max())
        ties[0, 0], ties[0, 1] = x.min(), x.max()
        assert torch.equal(product(level, packed, ties, 64, REDUCE_RANGE), fbgemm(weight, None, ties, True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", ROWS)
def test_per_row_is_each_row_alone(level: str, rows: int) -> None:
    packed = native_linear.pack(quantized(70, 130, True), torch.randn(70))
    assert packed is not None
    x = torch.randn(rows, 130) * torch.rand(rows, 1) * 100
    together = product(level, packed, x, 70, PER_ROW)
    alone = [product(level, packed, row.clone(), 70, 0) for row in x.split(1)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("flags", [0, REDUCE_RANGE, PER_ROW])
def test_relu_is_applied_last(level: str, flags: int) -> None:
    packed = native_linear.pack(quantized(70, 130, True), torch.randn(70))
    assert packed is not None
    x = torch.randn(9, 130)
    plain, rectified = (product(level, packed, x, 70, bits) for bits in (flags, flags | RELU))
    assert plain is not None and torch.equal(rectified, plain.relu())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("flags", [0, PER_ROW])
@pytest.mark.parametrize("rows", [3, 300])
def test_input_that_no_code_expresses_is_left_alone(level: str, value: float, flags: int, rows: int) -> None:
    packed = native_linear.pack(quantized(70, 130, False), None)
    assert packed is not None
    x = torch.randn(rows, 130)
    x[rows - 1, 129] = value
    assert product(level, packed, x, 70, flags) is None


@pytest.mark.skipif(not LEVELS, reason="no kernel here")
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 150), st.integers(1, 150), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_a_pack_gives_its_weight_back(n: int, k: int, per_channel: bool, with_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight, bias = quantized(n, k, per_channel), torch.randn(n) if with_bias else None
    packed = native_linear.pack(weight, bias)
    assert packed is not None
    found, found_bias = native_linear.unpack(packed.clone())
    assert torch.equal(found.int_repr(), weight.int_repr()) and found.qscheme() == weight.qscheme()
    if per_channel:
        assert torch.equal(found.q_per_channel_scales(), weight.q_per_channel_scales())
        assert torch.equal(found.q_per_channel_zero_points(), weight.q_per_channel_zero_points())
    else:
        assert (found.q_scale(), found.q_zero_point()) == (weight.q_scale(), 0)
    assert (found_bias is None) == (bias is None)
    assert bias is None or torch.equal(found_bias, bias)


@pytest.mark.skipif(not LEVELS, reason="no kernel here")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_number(threads: int) -> None:
    packed = native_linear.pack(quantized(512, 384, True), torch.randn(512))
    assert packed is not None
    x = torch.randn(90, 384)
    expected = native_linear.run(packed, x, REDUCE_RANGE, 384, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(native_linear.run(packed, x, REDUCE_RANGE, 384, 512), expected)
    finally:
        torch.set_num_threads(before)
