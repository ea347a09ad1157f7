"""Statically quantized LSTMs by a compiled kernel, with the bits of torch's operators on FBGEMM.

An operator on two codes of eight bits has 65536 results: torch's own operator is run on all of them once, and
the kernel looks them up. Only the product is computed, and requantized as FBGEMM does.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagerquant_native import kernel
from eagerquant_native.library import is_plain
from quantization.backends import native_recurrent
from quantization.backends.native_linear import pack_codes, required, symmetric_scales

QParams = tuple[float, int]

GATES = 4
# Those whose bits the kernel has.
ENGINES = ("x86", "fbgemm")
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Arguments(ctypes.Structure):
    """As eagerquant_native/src/lstm_static.cpp has it."""

    _fields_ = (
        ("pack", _POINTER), ("multiplier", _POINTER), ("offset", _POINTER),
        ("h_zero_point", _NUMBER), ("zero_point", _NUMBER * GATES),
        ("gate", _POINTER * GATES), ("kept", _POINTER), ("added", _POINTER), ("cell", _POINTER),
        ("result", _POINTER),
        ("inputs", _POINTER * GATES), ("input_stride", _NUMBER),
        ("steps", _NUMBER), ("rows", _NUMBER), ("hidden", _NUMBER),
        ("h", _POINTER), ("c", _POINTER), ("out", _POINTER),
    )  # fmt: skip


@dataclass(frozen=True)
class Entering:
    """What depends on the scale and zero point of the state that comes in."""

    multiplier: Tensor
    offset: Tensor
    kept: Tensor
    h_zero_point: int


@dataclass(frozen=True)
class Cell:
    """The packed recurrent weights of an LSTM, and its operators as tables.

    Args:
        weight: for the kernel; `scale` and `bias` are per column of it, as `outputs` is per gate.
        per_channel: whether the weights have a scale for each output.
        outputs: scale and zero point of each gate's product.
        gate, added, cell, result: see the kernel.
        keep: the operator on forget gate and cell state, as a table for that state's scale and zero point.
        h, c: scale and zero point of the states that come out.
    """

    weight: Tensor
    hidden: int
    scale: Tensor
    bias: Tensor
    per_channel: bool
    outputs: list[QParams]
    gate: list[Tensor]
    added: Tensor
    cell: Tensor
    result: Tensor
    keep: Callable[[QParams], Tensor]
    h: QParams
    c: QParams
    entering: dict[tuple[QParams, QParams], Entering] = field(default_factory=dict)

    def entered(self, h: QParams, c: QParams) -> Entering:
        """For a state of these scales and zero points; made once."""
        known = self.entering.get((h, c))
        if known is None:
            if len(self.entering) > 8:  # callers whose states have ever new scales
                self.entering.clear()
            known = self.entering[h, c] = self._enter(h, c)
        return known

    def _enter(self, h: QParams, c: QParams) -> Entering:
        # FBGEMM's order, in float32.
        of_sums = torch.tensor(h[0], dtype=torch.float32) * self.scale
        outputs = torch.tensor([scale for scale, _ in self.outputs], dtype=torch.float32)
        by_column = outputs.repeat_interleave(native_recurrent.UNITS).repeat(of_sums.numel() // 64)
        bias = self.bias / of_sums if self.per_channel else self.bias * (1 / of_sums)
        return Entering(of_sums / by_column, bias, self.keep(c), h[1])


def pack_weights(
    weights: list[Tensor], biases: list[Tensor | None], hidden: int
) -> tuple[Tensor, Tensor, Tensor, bool] | None:
    """The qint8 weights of one linear layer, or of four, packed; scale and bias per column; if per channel.

    None if they are not symmetric, or not of one kind.
    """
    per_channel = weights[0].qscheme() == torch.per_channel_affine
    scales: list[Tensor] = []
    for weight in weights:
        found = symmetric_scales(weight)
        if found is None or (found.dim() > 0) != per_channel:
            return None
        scales.append(found.expand(weight.size(0)))
    filled = [
        torch.zeros(weight.size(0)) if bias is None else bias.detach().float()
        for weight, bias in zip(weights, biases, strict=True)
    ]
    codes = torch.cat([weight.int_repr() for weight in weights])
    scale = native_recurrent.interleaved(torch.cat(scales).float(), hidden)
    bias = native_recurrent.interleaved(torch.cat(filled), hidden)
    scale[scale == 0] = 1.0  # of columns that stand for no unit
    unscaled = torch.ones((), dtype=torch.float64)
    return pack_codes(native_recurrent.interleaved(codes, hidden), unscaled, None), scale, bias, per_channel


def table(operator: Callable[[Tensor, Tensor], Tensor], first: QParams, second: QParams) -> Tensor:
    """The codes that an operator gives for each pair of codes, 256 for each code of the first."""
    codes = torch.arange(256, dtype=torch.uint8)
    x = torch._make_per_tensor_quantized_tensor(codes.repeat_interleave(256), *first)
    y = torch._make_per_tensor_quantized_tensor(codes.repeat(256), *second)
    return operator(x, y).int_repr()


def some_codes(shape: tuple[int, ...], qparams: QParams) -> Tensor:
    """A quantized tensor of all kinds of codes, in no order; always the same."""
    n = torch.arange(math.prod(shape)).reshape(shape)
    return torch._make_per_tensor_quantized_tensor(((n * 97 + n // 7 * 31) % 256).to(torch.uint8), *qparams)


def qparams_of(x: Tensor) -> QParams:
    """Scale and zero point of a quantized tensor."""
    return x.q_scale(), x.q_zero_point()


def are_codes(tensors: list[Tensor]) -> bool:
    """Whether these are ordinary quint8 tensors with something in them, and nobody records what is done."""
    return all(x.dtype == torch.quint8 and x.numel() > 0 and is_plain(x) for x in tensors)


def has_kernel() -> bool:
    """Whether the kernel stands for the operators of the selected engine."""
    return torch.backends.quantized.engine in ENGINES and kernel("lstm_static") is not None


def run(cell: Cell, inputs: list[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (steps, rows, hidden) and the last cell state (rows, hidden).

    Args:
        cell: the weights and tables.
        inputs: the input's part of the gates, contiguous, (steps, rows, 4 * hidden) or four of a quarter.
        h, c: the states before, contiguous, (rows, hidden).
    """
    steps, rows = inputs[0].shape[:2]
    out = torch._empty_affine_quantized(
        (steps, rows, cell.hidden), scale=cell.h[0], zero_point=cell.h[1], dtype=torch.quint8
    )
    codes = c.int_repr()
    first = 0 if (qparams_of(h), qparams_of(c)) == (cell.h, cell.c) else 1
    if first:
        _call(cell, cell.entered(qparams_of(h), qparams_of(c)), inputs, h, codes, out, (0, 1))
        h = out[0]
    if steps > first:
        _call(cell, cell.entered(cell.h, cell.c), inputs, h, codes, out, (first, steps))
    return out, torch._make_per_tensor_quantized_tensor(codes, *cell.c)


def _call(
    cell: Cell, entering: Entering, inputs: list[Tensor], h: Tensor, c: Tensor, out: Tensor,
    steps: tuple[int, int],
) -> None:  # fmt: skip
    width, rows, begin = inputs[0].size(-1), c.size(0), steps[0]
    if len(inputs) == 1:
        starts = [inputs[0].data_ptr() + g * cell.hidden for g in range(GATES)]
    else:
        starts = [each.data_ptr() for each in inputs]
    four, numbers = _POINTER * GATES, _NUMBER * GATES
    arguments = _Arguments(
        cell.weight.data_ptr(), entering.multiplier.data_ptr(), entering.offset.data_ptr(),
        entering.h_zero_point, numbers(*(zero_point for _, zero_point in cell.outputs)),
        four(*(each.data_ptr() for each in cell.gate)), entering.kept.data_ptr(), cell.added.data_ptr(),
        cell.cell.data_ptr(), cell.result.data_ptr(),
        four(*(start + begin * rows * width for start in starts)), width,
        steps[1] - begin, rows, cell.hidden,
        h.data_ptr(), c.data_ptr(), out.data_ptr() + begin * rows * cell.hidden,
    )  # fmt: skip
    required("lstm_static")(ctypes.addressof(arguments))
