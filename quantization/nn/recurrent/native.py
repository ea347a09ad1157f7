"""Dynamic LSTM and GRU layers on compiled kernels, where they stand for torch's operator."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from quantization.backends import native_recurrent as kernels, torch_quantized as q

# Packed again for the kernels on the first call, beside the record that it comes from. Nothing of it is on
# the module, so that copies, pickles and checkpoints are what they are without it.
_cells: weakref.WeakKeyDictionary[Any, tuple[Any, kernels.Cell | None]] = weakref.WeakKeyDictionary()


def run(
    layer: Any, input: Tensor, states: list[Tensor], batch_sizes: Tensor | None
) -> tuple[Tensor, list[Tensor]] | None:
    """Output and last states, or None where torch's operator is to be taken.

    Args:
        layer: a dynamic LSTM or GRU.
        input: float32, (T, N, width) or as `batch_first` says; with `batch_sizes` (rows of all steps, width).
        states: hidden state, and in an LSTM cell state, (layers * directions, N, hidden).
    """
    if not kernels.can_run([input, *states]) or (layer.training and layer.dropout > 0):
        return None
    cells = [_cell(module) for module in layer._all_weight_values]
    if None in cells:
        return None
    x = input.transpose(0, 1) if batch_sizes is None and layer.batch_first else input
    if batch_sizes is None:
        starts = torch.arange(0, x.size(0) * x.size(1) + 1, x.size(1))
    else:
        starts = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    rows = x.reshape(-1, x.size(-1)).contiguous()
    last = [state.clone(memory_format=torch.contiguous_format) for state in states]
    output = _run_layers(cells, rows, starts, last, 2 if layer.bidirectional else 1)
    if output is None:
        return None
    if batch_sizes is None:
        output = output.view(x.size(0), x.size(1), -1)
        output = output.transpose(0, 1) if layer.batch_first else output
    return output, last


def _run_layers(
    cells: list[Any], rows: Tensor, starts: Tensor, states: list[Tensor], directions: int
) -> Tensor | None:
    """The output rows of the last layer; the states are replaced."""
    for first in range(0, len(cells), directions):
        width = cells[first].hidden
        output = rows.new_empty(rows.size(0), directions * width)
        for k in range(directions):
            own = [state[first + k] for state in states]
            memory = own[1] if len(own) > 1 else None
            out = output[:, k * width : (k + 1) * width]
            if not kernels.run_cell(cells[first + k], rows, starts, own[0], memory, out, k == 1):
                return None
        rows = output
    return rows


def _cell(module: Any) -> kernels.Cell | None:
    """The packed weights of a `PackedParameter`; None if the kernels have no place for them."""
    known = _cells.get(module)
    if known is None or known[0] is not module.param:
        known = _cells[module] = (module.param, _packed(module))
    return known[1]


def _packed(module: Any) -> kernels.Cell | None:
    weights = module.cell_weights()
    tensors = (weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh)
    if not weights.weight_ih.is_quantized:
        return None  # packed as float16
    cell = kernels.pack_cell(*tensors, reduce_range=module.reduce_range())
    return cell if cell is not None and _agree(module, cell) else None


def _agree(module: Any, cell: kernels.Cell) -> bool:
    """Whether the kernel has torch's numbers: weights stay with the engine that packed them."""
    x = torch.linspace(-1, 1, 2 * cell.hidden).reshape(2, -1)
    expected = q.linear_dynamic(x, module.packed_pair()[1], module.reduce_range())
    return torch.equal(kernels.product(cell, x), kernels.interleaved(expected.T, cell.hidden).T)
