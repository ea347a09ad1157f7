"""Rounding and its gradient against torch's operators, bit for bit, in every way there is to compute them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from observers.rounding import fake_quantize, fake_quantize_channels
from tests.observers.ways import LEVELS, going, ways

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES, torch.float64]
SHAPES = [(), (1,), (31,), (33,), (3, 70), (5, 3, 7), (4, 3, 5, 9), (2, 40, 3, 3), (2, 3, 2, 2, 5), (9, 7000)]
BOUNDS = [(0, 255), (0, 127), (-128, 127), (-64, 63), (0, 15), (0, 65535), (-(2**31), 2**31 - 1)]
SPECIAL = [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**63, 9.3e18, -9.3e18, -0.0, 0.5, 1.5, -2.5, 1e-40]
LAYOUTS = ["contiguous", "channels last", "transposed", "with gaps", "expanded"]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels last" and x.dim() == 4:
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "with gaps" and x.dim() > 1:
        return torch.cat([x, x], -1)[..., ::2]
    if layout == "expanded" and x.dim() > 1:
        return x[:1].expand(x.shape)
    return x


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-3, 3))
    if draw(st.booleans()):
        x = (x * 2).round() / 2  # ties
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return laid_out(x.to(dtype), draw(st.sampled_from(LAYOUTS)))


scales = st.one_of(
    st.floats(2.0**-10, 8.0, width=32), st.sampled_from([0.0, 1e-40, math.inf, math.nan, -1.0])
)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same bits, the sign of zero included, and the same place in memory; any NaN is as good."""
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    assert bool(((bits(ours) == bits(theirs)) | (ours.isnan() & theirs.isnan())).all())


def check(way: str, x: torch.Tensor, ours: Any, theirs: Any, arguments: tuple[Any, ...]) -> None:
    a, b = x.detach().requires_grad_(), x.detach().requires_grad_()
    expected = theirs(b, *arguments)
    with going(way):
        result = ours(a, *arguments)
        assert_same(result.detach(), expected.detach())
        assert_same(ours(x.detach(), *arguments), expected.detach())
        gradient = torch.randn_like(expected)
        result.backward(gradient)
    expected.backward(gradient)
    assert a.grad is not None and b.grad is not None
    # Where a value was clamped, torch's operator multiplies by zero and keeps the sign of the gradient.
    assert torch.equal(a.grad, b.grad)


@ways
@settings(deadline=None, max_examples=150)
@given(
    x=tensors(), scale=scales, zero_point=st.sampled_from([0, 3, 100, 10**6]), bounds=st.sampled_from(BOUNDS)
)
def test_per_tensor(
    way: str, x: torch.Tensor, scale: float, zero_point: int, bounds: tuple[int, int]
) -> None:
    qparams = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    check(way, x, fake_quantize, torch.fake_quantize_per_tensor_affine, (*qparams, *bounds))


@ways
@settings(deadline=None, max_examples=200)
@given(
    x=tensors().filter(lambda x: x.dim() > 0),
    seed=st.integers(0, 2**31),
    special=st.sampled_from([None, None, None, 0.0, 1e-40, math.inf, math.nan, -1.0]),
    kind=st.sampled_from(["zero", "integers", "floats"]),
    bounds=st.sampled_from(BOUNDS),
    data=st.data(),
)
def test_per_channel(
    way: str, x: torch.Tensor, seed: int, special: Any, kind: str, bounds: tuple[int, int], data: Any
) -> None:
    axis = data.draw(st.integers(0, x.dim() - 1))
    channels, generator = x.size(axis), torch.Generator().manual_seed(seed)
    scale = torch.rand(channels, generator=generator) + 0.01
    if special is not None:
        scale[0] = special
    zero_point = torch.randint(max(-5, bounds[0]), min(bounds[1], 100), (channels,), generator=generator)
    zero_point = zero_point.float() + 0.3 if kind == "floats" else zero_point.int() * (kind == "integers")
    arguments = (scale, zero_point, axis, *bounds)
    check(way, x, fake_quantize_channels, torch.fake_quantize_per_channel_affine, arguments)


@ways
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded"])
def test_a_gradient_may_lie_otherwise(way: str, layout: str) -> None:
    x = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    qparams = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
    gradient = laid_out(torch.randn(2, 3, 5, 5), layout)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with going(way):
        fake_quantize(a, *qparams, -8, 7).backward(gradient)
    torch.fake_quantize_per_tensor_affine(b, *qparams, -8, 7).backward(gradient)
    assert a.grad is not None and b.grad is not None
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("way", LEVELS)
@pytest.mark.parametrize("last", [False, True])
def test_the_result_lies_like_its_gradient(way: str, last: bool) -> None:
    forms = [torch.contiguous_format, torch.channels_last]
    x = torch.randn(2, 3, 5, 5).to(memory_format=forms[last])
    gradient = torch.randn(2, 3, 5, 5).to(memory_format=forms[not last])
    qparams, found = (torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)), []
    for function in (fake_quantize, torch.fake_quantize_per_tensor_affine):
        a = x.clone().requires_grad_()
        with going(way):
            found += torch.autograd.grad(function(a, *qparams, -8, 7), a, gradient)
    assert torch.equal(found[0], found[1]) and found[0].stride() == found[1].stride()


@ways
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_tensors_pass(way: str, dtype: torch.dtype) -> None:
    qparams = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
    with going(way):
        y = fake_quantize(torch.zeros(0, 3, dtype=dtype), *qparams, -8, 7)
    assert (y.shape, y.dtype) == ((0, 3), dtype)


INT = torch.int32
REFUSED = {
    "zero point outside": (torch.ones(2), torch.tensor([0, 300], dtype=INT), 0, 0, 255),
    "too few scales": (torch.ones(1), torch.zeros(1, dtype=INT), 0, 0, 255),
    "axis": (torch.ones(2), torch.zeros(2, dtype=INT), 2, 0, 255),
    "empty range": (torch.ones(2), torch.zeros(2, dtype=INT), 0, 255, 0),
    "int64": (torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, 0, 255),
}


@ways
@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED.keys())
def test_what_torch_refuses_is_refused_in_its_words(way: str, arguments: Any) -> None:
    x = torch.randn(2, 3)
    with pytest.raises((RuntimeError, IndexError)) as expected:
        torch.fake_quantize_per_channel_affine(x, *arguments)
    with going(way), pytest.raises(expected.type) as found:
        fake_quantize_channels(x, *arguments)
    assert str(found.value) == str(expected.value)


# --- what autograd and the compiler do with it ---------------------------------------------------

SCALE, ZERO = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
CHANNEL_SCALES, CHANNEL_ZEROS = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int32)


def ours_whole(x: torch.Tensor) -> torch.Tensor:
    return fake_quantize(x, SCALE, ZERO, -8, 7)


def ours_by_channel(x: torch.Tensor) -> torch.Tensor:
    return fake_quantize_channels(x, CHANNEL_SCALES, CHANNEL_ZEROS, 0, -8, 7)


def theirs_whole(x: torch.Tensor) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, SCALE, ZERO, -8, 7)


def theirs_by_channel(x: torch.Tensor) -> torch.Tensor:
    return torch.fake_quantize_per_channel_affine(x, CHANNEL_SCALES, CHANNEL_ZEROS, 0, -8, 7)


pairs = pytest.mark.parametrize(
    ("ours", "theirs"), [(ours_whole, theirs_whole), (ours_by_channel, theirs_by_channel)]
)


@ways
@pairs
def test_a_second_derivative(way: str, ours: Any, theirs: Any) -> None:
    found = []
    for function in (ours, theirs):
        with going(way):
            x = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_()
            (first,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((first, second))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@ways
@pairs
def test_batches_of_gradients(way: str, ours: Any, theirs: Any) -> None:
    gradients, found = torch.randn(4, 3, 30), []
    for function in (ours, theirs):
        x = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_()
        with going(way):
            found += torch.autograd.grad(function(x), x, gradients, is_grads_batched=True)
    assert torch.equal(found[0], found[1])


@ways
@pairs
def test_function_transforms(way: str, ours: Any, theirs: Any) -> None:
    x = torch.linspace(-2, 2, 90).reshape(3, 30)
    with going(way):
        found = [torch.func.grad(lambda x, f=f: f(x).square().sum())(x) for f in (ours, theirs)]
    assert torch.equal(found[0], found[1])


@pairs
def test_compiles_to_one_graph(ours: Any, theirs: Any) -> None:
    x = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), x)
    assert torch.equal(found, expected)


@ways
@pairs
def test_the_result_may_be_changed_in_place(way: str, ours: Any, theirs: Any) -> None:
    found = []
    for function in (ours, theirs):
        x = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_()
        with going(way):
            function(x).relu_().sum().backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("way", LEVELS)
@pairs
def test_a_kernel_does_not_keep_its_input(way: str, ours: Any, theirs: Any) -> None:
    found = []
    for function in (ours, theirs):
        x = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_()
        with going(way):
            copy = x * 1
            y = function(copy)
            copy.zero_()
            y.sum().backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])


@ways
@pairs
def test_an_infinite_gradient_of_a_clamped_value_is_zero(way: str, ours: Any, theirs: Any) -> None:
    x = torch.full((3, 2), 100.0, requires_grad=True)
    with going(way):
        ours(x).backward(torch.full((3, 2), math.inf))
    assert x.grad is not None and torch.equal(x.grad, torch.zeros(3, 2))


@pairs
def test_in_plain_torch_the_input_is_kept_for_the_gradient(ours: Any, theirs: Any) -> None:
    def changed(function: Any) -> torch.Tensor:
        copy = torch.linspace(-2, 2, 90).reshape(3, 30).requires_grad_() * 1
        y = function(copy)
        copy.zero_()
        return y.sum()

    with going("torch"):
        changed(theirs).backward()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            changed(ours).backward()
