"""A converted LSTM cell over time: the input of all steps at once, then a kernel or torch's operators.

What runs here has the numbers of `LSTMCell.forward` called step by step. That remains for cells of other
parts than those `convert` makes, for observed ones, and where somebody watches the parts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from quantization.backends import native_lstm as kernels, torch_quantized as q
from quantization.nn.functional_modules import QFunctional

GATES = ("input", "forget", "cell", "output")
_ACTIVATIONS = ("input_gate", "forget_gate", "cell_gate", "output_gate")
_ARITHMETIC = ("fgate_cx", "igate_cgate", "fgate_cx_igate_cgate", "ogate_cy")
_KINDS = (nn.Sigmoid, nn.Sigmoid, nn.Tanh, nn.Sigmoid)
_METHODS = {"forward", "initialize_hidden", "add", "mul"}
_LINEAR = "quantization.nn.quantized.Linear"  # by name, because its module imports this one

# What the kernel needs, made on the first call and again when a part has other numbers. Nothing of it is on
# the module, so that copies, pickles and checkpoints are what they are without it.
_cells: weakref.WeakKeyDictionary[Any, tuple[Any, kernels.Cell | None]] = weakref.WeakKeyDictionary()


def run(
    cell: Any, x: Tensor, hidden: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Hidden states over time and the last state, or None where the cell is to be called step by step.

    Args:
        cell: an `LSTMCell`, whatever it is made of.
        x: (T, N, input_size).
        hidden: hidden and cell state (N, hidden_size), or None for those that the cell starts with.
    """
    if x.dim() != 3 or not kernels.are_codes([x]) or not _is_as_converted(cell):
        return None
    h, c = cell.initialize_hidden(x.shape[1], True) if hidden is None else hidden
    expected = (x.shape[1], cell.hidden_size)
    if h.shape != expected or c.shape != expected or not kernels.are_codes([h, c]):
        return None
    # Each row of a product stands for itself, so all steps can be one.
    inputs = [linear(x) for linear in _linears(cell.igates)]
    found = _known(cell) if kernels.has_kernel() else None
    if found is None:
        return _steps(cell, inputs, h, c)
    output, memory = kernels.run(
        found, [part.contiguous() for part in inputs], h.contiguous(), c.contiguous()
    )
    return output, (output[-1], memory)


def _steps(cell: Any, inputs: list[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same by torch's operators."""
    linears = [_product(each) for each in _linears(cell.hgates)]
    sums = [_numbers(each) for each in _linears(cell.gates)]
    kept, added, total, result = (_numbers(getattr(cell, name)) for name in _ARITHMETIC)
    output: list[Tensor] = []
    for step in zip(*(part.unbind(0) for part in inputs), strict=True):
        parts = [q.add(x, linear(h), *to) for x, linear, to in zip(step, linears, sums, strict=True)]
        if len(parts) == 1:  # one call for three sigmoids costs less than the quarter that is not needed
            i, f, _, o = torch.sigmoid(parts[0]).chunk(4, 1)
            g = torch.tanh(parts[0].chunk(4, 1)[2])
        else:
            i, f, o = (torch.sigmoid(parts[k]) for k in (0, 1, 3))
            g = torch.tanh(parts[2])
        c = q.add(q.mul(f, c, *kept), q.mul(i, g, *added), *total)
        h = q.mul(o, torch.tanh(c), *result)
        output.append(h.unsqueeze(0))
    return q.cat(output, 0, *result), (h, c)


def _product(linear: Any) -> Callable[[Tensor], Tensor]:
    """What the layer computes, with little around it; an engine's object is not made for that."""
    if linear._packed_params.native() is not None:
        return linear.forward
    packed, scale, zero_point, run = linear._packed_params._packed_params, *_numbers(linear), q.LINEAR.run
    return lambda h: run(h, packed, scale, zero_point)


def _linears(gates: Any) -> list[Any]:
    return [gates[gate] for gate in GATES] if isinstance(gates, nn.ModuleDict) else [gates]


def _is_as_converted(cell: Any) -> bool:
    """Whether all parts are what `convert` made, and nobody watches them."""
    if _name(cell) != "quantization.nn.quantizable.cell.LSTMCell" or torch_module._has_any_global_hook():
        return False
    arithmetic = [*_linears(cell.gates), *(getattr(cell, name) for name in _ARITHMETIC)]
    linears = [*_linears(cell.igates), *_linears(cell.hgates)]
    activations = [getattr(cell, name) for name in _ACTIVATIONS]
    return (
        all(_name(each) == _LINEAR for each in linears)
        and all(type(each) is kind for each, kind in zip(activations, _KINDS, strict=True))
        and all(type(each) is QFunctional for each in arithmetic)
        and all(type(each.activation_post_process) is nn.Identity for each in arithmetic)
        and not any(map(_is_watched, [cell, *linears, *activations, *arithmetic]))
        and not any(_is_watched(each.activation_post_process) for each in arithmetic)
    )


def _name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more, or other things, than its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(hooks) or not _METHODS.isdisjoint(vars(module))


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
    numbers = [*linears, *_linears(cell.gates), *(getattr(cell, name) for name in _ARITHMETIC)]
    packed = tuple(linear._packed_params.identity() for linear in linears)
    return (packed, *((each.scale, each.zero_point) for each in numbers))


def _made(cell: Any) -> kernels.Cell | None:
    linears = _linears(cell.hgates)
    pairs = [linear._weight_bias() for linear in linears]
    packed = kernels.pack_weights(
        [weight for weight, _ in pairs], [bias for _, bias in pairs], cell.hidden_size
    )
    if packed is None:
        return None
    weight, scale, bias, per_channel = packed
    found = kernels.Cell(weight, cell.hidden_size, scale, bias, per_channel, *_tables(cell))
    return found if _agree(cell, found) else None


def _agree(cell: Any, found: kernels.Cell) -> bool:
    """Whether the kernel has the numbers of a first and a later step.

    Weights stay with the engine that packed them, and QNNPACK's differ in a few codes of a hundred, most of
    them in the first step, whose state has a scale of its own.
    """
    rows = max(16, 4096 // cell.hidden_size)
    inputs = [
        kernels.some_codes((1, rows, linear.out_features), _numbers(linear))
        for linear in _linears(cell.igates)
    ]
    later = [kernels.some_codes((rows, cell.hidden_size), qparams) for qparams in (found.h, found.c)]
    for h, c in (cell.initialize_hidden(rows, True), later):
        by_kernel, by_operators = kernels.run(found, inputs, h, c), _steps(cell, inputs, h, c)
        for one, other in ((by_kernel[0], by_operators[0]), (by_kernel[1], by_operators[1][1])):
            if not torch.equal(one.int_repr(), other.int_repr()):
                return False
    return True


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
