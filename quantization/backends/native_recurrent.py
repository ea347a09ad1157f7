"""Dynamic LSTM and GRU layers by compiled kernels: torch's arithmetic in another order of memory.

The products and what leads to them have torch's bits, sigmoid and tanh may differ in the last place. So one
step differs by as much, and a sequence by as much as a value of the hidden state that rounds the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagerquant_native import kernel
from eagerquant_native.library import is_plain
from quantization.backends.native_linear import REDUCE_RANGE, pack_codes, required, symmetric_scales

# As the kernels have them: units of a block, and a flag beside those of linear layers.
UNITS = 16
_REVERSE = 1 << 8


@dataclass(frozen=True)
class Cell:
    """The packed weights of one layer and direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    hidden: int
    flags: int


def pack_cell(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, reduce_range: bool
) -> Cell | None:
    """Pack qint8 weights of shape (gates * hidden, ...) and float biases; None if they are not symmetric."""
    scales_ih, scales_hh = symmetric_scales(weight_ih), symmetric_scales(weight_hh)
    if scales_ih is None or scales_hh is None:
        return None
    hidden = weight_hh.size(1)
    flags = REDUCE_RANGE if reduce_range else 0
    return Cell(
        _packed(weight_ih, bias_ih, scales_ih, hidden),
        _packed(weight_hh, bias_hh, scales_hh, hidden),
        hidden,
        flags,
    )


def _packed(weight: Tensor, bias: Tensor, scales: Tensor, hidden: int) -> Tensor:
    scales = interleaved(scales, hidden) if scales.dim() else scales
    return pack_codes(interleaved(weight.int_repr(), hidden), scales, interleaved(bias.float(), hidden))


def interleaved(rows: Tensor, hidden: int) -> Tensor:
    """Rows (gates * hidden, ...) in blocks of 64: 16 units by four gates; what there is none of is zero."""
    gates, rest = rows.size(0) // hidden, rows.shape[1:]
    blocks = -(-hidden // UNITS)
    filled = rows.new_zeros(4, blocks * UNITS, *rest)
    filled[:gates, :hidden] = rows.reshape(gates, hidden, *rest)
    return filled.reshape(4, blocks, UNITS, *rest).transpose(0, 1).reshape(-1, *rest).contiguous()


def can_run(tensors: list[Tensor]) -> bool:
    """Whether the kernels stand for torch's operators on these tensors, here and now."""
    if not all(is_plain(x) and x.dtype == torch.float32 and x.numel() for x in tensors):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    # Any other engine is used as it is; torch's default leaves the choice to us.
    return torch.backends.quantized.engine == "x86" and kernel("recurrent_dynamic") is not None


def product(cell: Cell, hidden: Tensor) -> Tensor:
    """The hidden state's part of the gates, interleaved; of float32 rows, contiguous and finite."""
    out = hidden.new_empty(hidden.size(0), 4 * UNITS * -(-cell.hidden // UNITS))
    required("linear_dynamic")(
        cell.weight_hh.data_ptr(), hidden.data_ptr(), hidden.size(0), cell.flags, out.data_ptr()
    )
    return out


def run_cell(
    cell: Cell, x: Tensor, starts: Tensor, hidden: Tensor, memory: Tensor | None, out: Tensor, reverse: bool
) -> bool:
    """Run one layer in one direction over time; False, with nothing of use, if a value is not finite.

    Args:
        x: the rows of all steps, contiguous, float32.
        starts: the first row of each step, and their end, int64; the state has the rows of the first step.
        hidden: the state (rows, hidden), contiguous; replaced by the last one.
        memory: the cell state of an LSTM, likewise.
        out: h of each row, a view whose last axis is dense.
        reverse: run from the last step to the first.
    """
    gates = x.new_empty(x.size(0), 4 * UNITS * -(-cell.hidden // UNITS))
    linear, steps = required("linear_dynamic"), required("recurrent_dynamic")
    if linear(cell.weight_ih.data_ptr(), x.data_ptr(), x.size(0), cell.flags, gates.data_ptr()):
        return False
    failed = steps(
        cell.weight_hh.data_ptr(), gates.data_ptr(), starts.data_ptr(), starts.numel() - 1, cell.hidden,
        cell.flags | (_REVERSE if reverse else 0), hidden.data_ptr(),
        None if memory is None else memory.data_ptr(), out.data_ptr(), out.stride(0),
    )  # fmt: skip
    return not failed
