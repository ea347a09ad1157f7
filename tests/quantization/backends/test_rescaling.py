"""Dividing by a factor per channel against torch's division, bit for bit, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantization.backends.rescaling import unscaled
from tests.observers.ways import going, ways

SHAPES = [(2, 3), (2, 5, 7), (3, 70, 6, 5), (2, 16, 40, 40), (2, 3, 4, 5, 6)]


def divided(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return x / factor.reshape([1, -1] + [1] * (x.dim() - 2))


def laid_out(x: torch.Tensor, last: bool) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last) if last and x.dim() == 4 else x


def assert_same(found: list[Any]) -> None:
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


@ways
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gradient_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(way: str, shape: Any, last: bool, gradient_last: bool) -> None:
    x, factor = laid_out(torch.randn(shape), last), torch.randn(shape[1])
    gradient = laid_out(torch.randn(shape), gradient_last)
    found = []
    for function in (unscaled, divided):
        a, f = x.clone().requires_grad_(), factor.clone().requires_grad_()
        with going(way):
            y = function(a, f)
            y.backward(gradient)
        found.append((y.detach(), a.grad, f.grad))
    assert_same(found)


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_torchs(way: str, dtype: torch.dtype) -> None:
    x, factor, found = torch.randn(2, 3, 4).to(dtype), torch.randn(3), []
    for function in (unscaled, divided):
        a, f = x.clone().requires_grad_(), factor.clone().requires_grad_()
        with going(way):
            y = function(a, f)
            y.float().square().sum().backward()
        found.append((y.detach(), a.grad, f.grad))
    assert_same(found)


@ways
def test_a_second_derivative(way: str) -> None:
    x, factor, found = torch.randn(2, 3, 4), torch.rand(3) + 0.5, []
    for function in (unscaled, divided):
        a, f = x.clone().requires_grad_(), factor.clone().requires_grad_()
        with going(way):
            first = torch.autograd.grad((function(a, f) ** 3).sum(), (a, f), create_graph=True)
            found.append(torch.autograd.grad(first[0].square().sum() + first[1].sum(), (a, f)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@ways
def test_batches_of_gradients(way: str) -> None:
    x, factor, gradients, found = torch.randn(2, 3, 4), torch.rand(3) + 0.5, torch.randn(5, 2, 3, 4), []
    for function in (unscaled, divided):
        a, f = x.clone().requires_grad_(), factor.clone().requires_grad_()
        with going(way):
            found.append(torch.autograd.grad(function(a, f), (a, f), gradients, is_grads_batched=True))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
