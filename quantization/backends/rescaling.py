"""Dividing an activation by a factor per channel, with a backward pass that reads and writes it once.

The numbers are those of `x / factor` and of its gradients. The quotient is kept and not `x`: the batch norm
that follows keeps it too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eagerquant_native.library import is_plain, kernel
from observers.reductions import as_three, memory_order
from observers.straight import is_readable


def unscaled(x: Tensor, factor: Tensor) -> Tensor:
    """`x / factor`, where `factor` [channels] belongs to the second axis of `x`.

    >>> unscaled(torch.ones(1, 2, 2), torch.tensor([2.0, 4.0]))
    tensor([[[0.5000, 0.5000],
             [0.2500, 0.2500]]])
    """
    tracked = torch.is_grad_enabled() and (x.requires_grad or factor.requires_grad)
    if tracked and is_plain(x) and is_plain(factor) and x.dtype is factor.dtype is torch.float32:
        return _Unscaled.apply(x, factor)
    return x / _per_channel(factor, x)


def _per_channel(factor: Tensor, like: Tensor) -> Tensor:
    return factor.reshape([1, -1] + [1] * (like.dim() - 2))


class _Unscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        quotient = x / _per_channel(factor, x)
        ctx.save_for_backward(quotient, factor)
        return quotient

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        quotient, factor = ctx.saved_tensors
        by_x, by_factor = _by_kernel(gradients[0], quotient, factor) or _by_both(
            gradients[0], quotient, factor
        )
        others = [0, *range(2, quotient.dim())]
        return by_x, by_factor.sum(others)


def _by_both(gradient: Tensor, quotient: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    factor = _per_channel(factor, quotient)
    return gradient / factor, -gradient * (quotient / factor)


def _by_kernel(gradient: Tensor, quotient: Tensor, factor: Tensor) -> tuple[Tensor, Tensor] | None:
    run, order = kernel("unscale"), memory_order(quotient)
    if run is None or order is None or torch.is_grad_enabled() or not _is_like(gradient, order):
        return None
    if not factor.is_contiguous() or quotient.numel() == 0:
        return None
    by_x, by_factor = torch.empty_like(gradient), torch.empty_like(gradient)
    addresses = [each.data_ptr() for each in (gradient, quotient, factor, by_x, by_factor)]
    run(*addresses, *as_three(quotient, 1, order))
    return by_x, by_factor


def _is_like(gradient: Tensor, order: list[int]) -> bool:
    return (
        is_readable(gradient) and gradient.dtype is torch.float32 and gradient.permute(order).is_contiguous()
    )
