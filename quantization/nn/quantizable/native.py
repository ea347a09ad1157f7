"""A converted LSTM on a compiled kernel, where that stands for the parts it is made of."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from quantization.backends import native_lstm as kernels
from quantization.nn.functional_modules import QFunctional

GATES = ("input", "forget", "cell", "output")
_ACTIVATIONS = ("input_gate", "forget_gate", "cell_gate", "output_gate")
_ARITHMETIC = ("fgate_cx", "igate_cgate", "fgate_cx_igate_cgate", "ogate_cy")
_LINEAR = "quantization.nn.quantized.Linear"  # by name, because its module imports this one

# What the kernel needs, made on the first call and again when a part has other numbers. Nothing of it is on the
# module, so that copies, pickles and checkpoints are what they are without it.
_cells: weakref.WeakKeyDictionary[Any, tuple[Any, kernels.Cell | None]] = weakref.WeakKeyDictionary()


def run(
    cell: Any, x: Tensor, hidden: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Hidden states over time and the last state, or None where the cell is to be run step by step.

    Args:
        cell: an `LSTMCell`, whatever it is made of.
        x: (T, N, input_size).
        hidden: hidden and cell state (N, hidden_size), or None for those that the cell starts with.
    """
    if not x.is_quantized or x.dim() != 3 or not kernels.can_run([x]) or not _is_as_converted(cell):
        return None
    h, c = cell.initialize_hidden(x.shape[1], True) if hidden is None else hidden
    expected = (x.shape[1], cell.hidden_size)
    if h.shape != expected or c.shape != expected or not kernels.can_run([h, c]):
        return None
    found = _known(cell)
    if found is None:
        return None
    linears = _linears(cell.igates)
    inputs = [linear(x).contiguous() for linear in linears]
    output, memory = kernels.run(found, inputs, h.contiguous(), c.contiguous())
    return output, (output[-1], memory)


def _linears(gates: Any) -> list[Any]:
    return [gates[gate] for gate in GATES] if isinstance(gates, nn.ModuleDict) else [gates]


def _sums(cell: Any) -> list[Any]:
    return _linears(cell.gates)


def _is_as_converted(cell: Any) -> bool:
    """Whether all parts are what `convert` made, and nobody watches them."""
    arithmetic = [*_sums(cell), *(getattr(cell, name) for name in _ARITHMETIC)]
    linears = [*_linears(cell.igates), *_linears(cell.hgates)]
    activations = [getattr(cell, name) for name in _ACTIVATIONS]
    return (
        f"{type(cell).__module__}.{type(cell).__qualname__}" == "quantization.nn.quantizable.cell.LSTMCell"
        and all(
            type(each) is QFunctional and type(each.activation_post_process) is nn.Identity
            for each in arithmetic
        )
        and all(f"{type(each).__module__}.{type(each).__qualname__}" == _LINEAR for each in linears)
        and all(type(each) in (nn.Sigmoid, nn.Tanh) for each in activations)
        and not torch_module._has_any_global_hook()
        and not any(
            _is_watched(each)
            for each in (
                cell,
                *arithmetic,
                *linears,
                *activations,
                *(a.activation_post_process for a in arithmetic),
            )
        )
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more, or other things, than its class says."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ) or not _REPLACED.isdisjoint(vars(module))


_REPLACED = {"forward", "add", "mul"}


def _known(cell: Any) -> kernels.Cell | None:
    """What the kernel needs of a cell; None if it has no place for its weights."""
    key = _key(cell)
    known = _cells.get(cell)
    if known is None or known[0] != key:
        known = _cells[cell] = (key, _made(cell))
    return known[1]


def _key(cell: Any) -> tuple[Any, ...]:
    """All that a cell's tables and weights follow from; packed weights are never changed in place."""
    linears = [*_linears(cell.igates), *_linears(cell.hgates)]
    numbers = [*linears, *_sums(cell), *(getattr(cell, name) for name in _ARITHMETIC)]
    activations = tuple(type(getattr(cell, name)) for name in _ACTIVATIONS)
    packed = tuple(id(linear._packed_params._packed_params) for linear in linears)
    return (packed, activations, *((each.scale, each.zero_point) for each in numbers))


def _made(cell: Any) -> kernels.Cell | None:
    linears = _linears(cell.hgates)
    pairs = [linear._weight_bias() for linear in linears]
    packed = kernels.pack_weights(
        [weight for weight, _ in pairs], [bias for _, bias in pairs], cell.hidden_size
    )
    if packed is None:
        return None
    return kernels.Cell(packed[0], cell.hidden_size, packed[1], packed[2], *_tables(cell))


def _numbers(module: Any) -> kernels.QParams:
    return float(module.scale), int(module.zero_point)


def _four(modules: list[Any]) -> list[Any]:
    return modules * 4 if len(modules) == 1 else modules


def _tables(cell: Any) -> tuple[Any, ...]:
    """The operators of a cell on all codes, run as its `forward` runs them."""
    inputs, states, sums = (_four(_linears(each)) for each in (cell.igates, cell.hgates, cell.gates))
    activations = [getattr(cell, name) for name in _ACTIVATIONS]
    gate = [
        kernels.table(
            lambda x, y, total=total, act=act: act(total.add(x, y)), _numbers(first), _numbers(second)
        )
        for first, second, total, act in zip(inputs, states, sums, activations, strict=True)
    ]
    for k in range(4):  # one table where they are equal: it stays in the cache
        gate[k] = next(each for each in gate if torch.equal(each, gate[k]))
    probe = torch._make_per_tensor_quantized_tensor(torch.zeros(1, dtype=torch.uint8), 1.0, 0)
    i, f, g, o = (kernels.qparams_of(act(probe)) for act in activations)
    added = kernels.table(cell.igate_cgate.mul, i, g)
    total = kernels.table(cell.fgate_cx_igate_cgate.add, _numbers(cell.fgate_cx), _numbers(cell.igate_cgate))
    c = _numbers(cell.fgate_cx_igate_cgate)
    result = kernels.table(lambda x, y: cell.ogate_cy.mul(x, torch.tanh(y)), o, c)
    mul = _multiplier(cell.fgate_cx)
    outputs = [_numbers(each) for each in states]
    return (
        outputs,
        gate,
        added,
        total,
        result,
        lambda state: kernels.table(mul, f, state),
        _numbers(cell.ogate_cy),
        c,
    )


def _multiplier(part: QFunctional) -> Any:
    """`part.mul` as it is now, without a reference that would keep the cell alive."""
    now = QFunctional()
    now.scale, now.zero_point = part.scale, part.zero_point
    return now.mul
