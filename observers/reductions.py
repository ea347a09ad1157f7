"""The smallest and the largest value of a tensor, whole or per channel, at the cost of reading it once.

Torch reduces fast along memory and slowly across it. So tensors are reduced in the order in which they lie in
memory, by a compiled kernel where there is one. NaN anywhere makes both bounds NaN, as in torch.
"""

from __future__ import annotations

import torch

from eagerquant_native.library import is_plain, kernel

# Torch needs less time for fewer values than a call of a kernel takes.
_FEW = 1 << 16
# What names the kernels of a dtype.
SUFFIX = {torch.float32: "", torch.bfloat16: "_bfloat16", torch.float16: "_half"}


def whole_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest value of `x`, which is not empty: 0-d tensors of its dtype.

    >>> whole_range(torch.tensor([[2.0, -1.0], [0.5, 3.0]]))
    (tensor(-1.), tensor(3.))
    """
    if not torch.jit.is_scripting():
        return _whole_range(x)
    low, high = torch.aminmax(x)
    return low, high


def channel_range(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest value for each index along `axis`: 1-d tensors of `x`'s dtype.

    `axis` is one of at least two dimensions, counted from the front; `x` is not empty.

    >>> channel_range(torch.tensor([[2.0, -1.0], [0.5, 3.0]]), 1)
    (tensor([ 0.5000, -1.0000]), tensor([2., 3.]))
    """
    if not torch.jit.is_scripting():
        found = _native_channel_range(x, axis)
        if found is not None:
            return found
    others = [dim for dim in range(axis)] + [dim for dim in range(axis + 1, x.dim())]
    return torch.amin(x, others), torch.amax(x, others)


def is_reducible(x: torch.Tensor) -> bool:
    """Whether the range can be taken of `x` as it is, or of a copy in another dtype only.

    >>> is_reducible(torch.zeros(1, dtype=torch.float16)), is_reducible(torch.zeros(1, dtype=torch.bool))
    (True, False)
    """
    return (
        x.dtype == torch.float32
        or x.dtype == torch.bfloat16
        or x.dtype == torch.float16
        or x.dtype == torch.float64
    )


@torch.jit.unused
def _whole_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not is_plain(x) or (x.numel() < _FEW and x.is_contiguous()):
        low, high = torch.aminmax(x)
        return low, high
    order = memory_order(x)
    run = kernel("range" + SUFFIX[x.dtype]) if order is not None and x.dtype in SUFFIX else None
    if run is None:
        # Flat, where it can be: torch is slow on other memory formats.
        low, high = torch.aminmax(x if order is None or x.is_contiguous() else x.permute(order).flatten())
        return low, high
    found = torch.empty(2)
    run(x.data_ptr(), x.numel(), found.data_ptr())
    low, high = found.to(x.dtype).unbind()
    return low, high


@torch.jit.unused
def _native_channel_range(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    if x.dtype not in SUFFIX or not is_plain(x):
        return None
    order, run = memory_order(x), kernel("ranges" + SUFFIX[x.dtype])
    if order is None or run is None:
        return None
    sizes = as_three(x, axis, order)
    low, high = torch.empty(sizes[1]), torch.empty(sizes[1])
    run(x.data_ptr(), *sizes, low.data_ptr(), high.data_ptr())
    return low.to(x.dtype), high.to(x.dtype)


def as_three(x: torch.Tensor, axis: int, order: list[int]) -> tuple[int, int, int]:
    """Return the sizes before, of and after `axis` of a tensor that lies dense, its dimensions in `order`.

    >>> as_three(torch.empty(2, 3, 4, 5), 1, [0, 2, 3, 1])
    (40, 3, 1)
    """
    channels, inner = x.size(axis), 1
    for dim in order[order.index(axis) + 1 :]:
        inner *= x.size(dim)
    return x.numel() // (channels * inner), channels, inner


def update_range(
    x: torch.Tensor, axis: int | None, low: torch.Tensor, high: torch.Tensor, constant: float = -1.0
) -> bool:
    """Merge the range of `x` into `low` and `high` by one call of a kernel; False if that did nothing.

    So it is where there is no kernel, and for values that are not finite, of which somebody has to tell.

    Args:
        x: not empty.
        axis: of the channels, counted from the front; None for one range.
        low, high: the range so far.
        constant: of the moving average; a negative one merges by min and max.
    """
    if x.dtype not in SUFFIX or not is_plain(x):
        return False
    if not (low.dtype is torch.float32 and low.is_cpu and low.is_contiguous() and high.is_contiguous()):
        return False
    order, run = memory_order(x), kernel("update_ranges" + SUFFIX[x.dtype])
    if order is None or run is None:
        return False
    sizes = (1, 1, x.numel()) if axis is None else as_three(x, axis, order)
    if low.numel() != sizes[1]:
        return False
    return not run(x.data_ptr(), *sizes, low.data_ptr(), high.data_ptr(), constant)


def memory_order(x: torch.Tensor) -> list[int] | None:
    """Return the dimensions from the one with the largest steps in memory; None if `x` has gaps or overlaps.

    >>> memory_order(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
    [0, 2, 3, 1]
    """
    if x.is_contiguous():
        return list(range(x.dim()))
    strides, sizes = x.stride(), x.size()
    order = sorted(range(x.dim()), key=strides.__getitem__, reverse=True)
    expected = 1
    for dim in reversed(order):
        if sizes[dim] != 1:
            if strides[dim] != expected:
                return None
            expected *= sizes[dim]
    return order
