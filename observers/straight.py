"""The gradient of rounding: it passes straight through, but where a value was clamped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagerquant_native.library import is_plain, kernel
from observers.reductions import as_three, memory_order

BLOCK = 32  # values per word of a mask
_is_batch: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore


class Rounded(NamedTuple):
    """A result, and what its gradient takes: `gate(gradient, *kept)` clears it where a value was clamped.

    `kept` is made by `keep(x)`, only if there will be a backward pass.
    """

    value: Tensor
    gate: Callable[..., Tensor]
    keep: Callable[[Tensor], tuple[Tensor, ...]]


def with_gradient(x: Tensor, rounded: Rounded) -> Tensor:
    """The value of `rounded` as a function of `x`, if `x` takes part in a graph."""
    if wants_gradient(x):
        return _Straight.apply(x, rounded)
    return rounded.value


class _Straight(torch.autograd.Function):
    """The gradient passes straight through, but where a value was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Rounded) -> Tensor:
        ctx.save_for_backward(*rounded.keep(x))
        ctx.gate = rounded.gate
        return rounded.value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.gate(gradients[0], *ctx.saved_tensors), None


def wants_gradient(x: Tensor) -> bool:
    """Whether a backward pass through `x` may come."""
    return torch.is_grad_enabled() and x.requires_grad


class Layout(NamedTuple):
    """How a dense tensor lies in memory: its dimensions, those with the largest steps first."""

    order: list[int]

    def fits(self, x: Tensor) -> bool:
        """Whether `x`, of the same shape, lies like this."""
        return x.permute(self.order).is_contiguous()

    def flat(self, x: Tensor) -> Tensor:
        """The values of `x` in this order."""
        return x.permute(self.order).contiguous()

    def unflat(self, values: Tensor) -> Tensor:
        """The reverse of `flat`."""
        return values.permute(sorted(range(len(self.order)), key=self.order.__getitem__))

    def runs(self, x: Tensor, axis: int) -> tuple[int, int, int]:
        """Sizes (outer, channels, inner) of the memory seen as three dimensions, `axis` the one between."""
        return as_three(x, axis, self.order)


def dense(x: Tensor) -> tuple[Tensor, Layout]:
    """`x` itself if it lies dense, else a copy that lies as torch's result would."""
    order = memory_order(x)
    if order is None:
        x = x.detach().clone()
        order = memory_order(x)
    if order is None:
        x, order = x.contiguous(), list(range(x.dim()))
    return x, Layout(order)


def is_readable(gradient: Tensor) -> bool:
    """Whether a kernel may read it; a batch of gradients, as `torch.autograd.grad` makes, looks like one."""
    return is_plain(gradient) and not _is_batch(gradient)


class MaskGate(NamedTuple):
    """Clears a gradient by the bits that a kernel left: `rows` runs of `length` values, in blocks of 32."""

    layout: Layout
    rows: int
    length: int

    def mask(self) -> Tensor:
        """Room for the bits."""
        return torch.empty(self.rows * -(-self.length // BLOCK), dtype=torch.int32)

    def __call__(self, gradient: Tensor, mask: Tensor) -> Tensor:
        if torch.is_grad_enabled() and gradient.requires_grad:
            return _Gated.apply(gradient, self, mask)
        keep = kernel(f"keep_{gradient.element_size() * 8}") if is_readable(gradient) else None
        if keep is None:
            return torch.where(self.passed(mask, gradient), gradient, 0.0)
        if not self.layout.fits(gradient):
            # The result lies like the gradient, as torch's: sums over it then add in the same order.
            moved = self.layout.unflat(self.layout.flat(gradient))
            return torch.empty_like(gradient).copy_(self(moved, mask))
        kept = torch.empty_like(gradient)
        keep(gradient.data_ptr(), mask.data_ptr(), kept.data_ptr(), self.rows, self.length)
        return kept

    def passed(self, mask: Tensor, like: Tensor) -> Tensor:
        """The bits as booleans of the shape of `like`."""
        bits = (mask.unsqueeze(-1) >> torch.arange(BLOCK, dtype=torch.int32)) & 1
        flat = bits.reshape(self.rows, -1)[:, : self.length].bool()
        return self.layout.unflat(flat.reshape([like.size(dim) for dim in self.layout.order]))


class _Gated(torch.autograd.Function):
    """A gate as a function of the gradient, for a second backward pass."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, gate: MaskGate, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.gate = gate
        return gate(gradient.detach(), mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.gate(gradients[0], *ctx.saved_tensors), None, None


def masked(value: Tensor, gate: MaskGate, mask: Tensor | None) -> Rounded:
    """What a kernel gave, with the mask it filled; None where no backward pass will come."""
    return Rounded(value, gate, lambda _: () if mask is None else (mask,))


def address(tensor: Tensor | None) -> int | None:
    """Where the values of a tensor lie, for a kernel."""
    return None if tensor is None else tensor.data_ptr()
