"""Cross-layer equalization: scale weights between consecutive layers so that their channels' ranges agree.

For output channel i of the first layer with range r1_i, and input channel i of the second with range r2_i,
the first is divided and the second multiplied by s_i = sqrt(r1_i / r2_i): both ranges become
sqrt(r1_i * r2_i), and with ReLU or nothing in between the model computes the same. Source: Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction (2019). The names are those of
torch.ao.quantization._equalize.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantization.engine.tree import walk
from quantization.errors import InvalidRequest
from quantization.nn import fused

_supported_types: set[Any] = {nn.Conv2d, nn.Linear, nn.Conv1d}
_supported_intrinsic_types: set[Any] = {fused.ConvReLU2d, fused.LinearReLU, fused.ConvReLU1d}
_all_supported_types = _supported_types | _supported_intrinsic_types


class _WrongType(InvalidRequest, TypeError):
    """The channels of two layers do not match; a TypeError too, as torch.ao has it."""


def equalize(
    model: nn.Module,
    paired_modules_list: Sequence[Sequence[Any]],
    threshold: float = 1e-4,
    inplace: bool = True,
) -> nn.Module:
    """Equalize groups of consecutive layers, again and again until no weight changes much; returns the model.

    Args:
        model: a float model; layers may be `Linear`, `Conv1d`, `Conv2d` and these fused with ReLU.
        paired_modules_list: groups of two or more layers, as dotted names or modules, in the order in which
            they run, with at most a ReLU between them.
        threshold: stop when the norms of all changes of weights in one round add up to less.
        inplace: change `model` itself instead of a copy.

    Raises:
        InvalidRequest: an unknown name, an unsupported type or channels that do not match; `model` is then as
            before.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> equal = equalize(model, [["0", "2"]], inplace=False)
    >>> bool(torch.allclose(channel_range(equal[0].weight), channel_range(equal[2].weight, 1)))
    True
    """
    groups = process_paired_modules_list_to_name(model, paired_modules_list)
    pairs = expand_groups_in_paired_modules_list(groups)
    modules = {site.path: site.module for site in walk(model, every_name=True)}
    for first, second in pairs:
        missing = [name for name in (first, second) if name not in modules]
        if missing:
            raise InvalidRequest(f"equalize: the model has no module {missing[0]!r}; use dotted names")
        _require_pair(modules[first], modules[second], first, second)
    if not inplace:
        model = copy.deepcopy(model)
        modules = {site.path: site.module for site in walk(model, every_name=True)}
    names = {name for pair in pairs for name in pair}
    before: dict[str, nn.Module] = {}
    # The changes shrink geometrically; a cap, for extreme weights may go on changing in their last digits.
    for _ in range(_ROUNDS):
        current = {name: modules[name] for name in names}
        if before and converged(current, before, threshold):
            return model
        before = {name: copy.deepcopy(module) for name, module in current.items()}
        for first, second in pairs:
            cross_layer_equalization(modules[first], modules[second])
    return model


_ROUNDS = 1000


def cross_layer_equalization(
    module1: nn.Module, module2: nn.Module, output_axis: int = 0, input_axis: int = 1
) -> None:
    """Equalize two layers, the second of which takes the output of the first, in place.

    Channels whose range is zero on one side stay as they are.

    >>> first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    >>> cross_layer_equalization(first, second)
    >>> bool(torch.allclose(channel_range(first.weight, 0), channel_range(second.weight, 1)))
    True
    """
    _require_pair(module1, module2, type(module1).__name__, type(module2).__name__, output_axis, input_axis)
    with torch.no_grad():
        weight1, weight2 = get_module_weight(module1), get_module_weight(module2)
        range1, range2 = channel_range(weight1, output_axis), channel_range(weight2, input_axis)
        scale = torch.sqrt(range1 * range2) / range2
        scale = torch.where((range1 > 0) & (range2 > 0), scale, torch.ones_like(scale))
        set_module_weight(module1, weight1 / _along(scale, weight1, output_axis))
        set_module_weight(module2, weight2 * _along(scale, weight2, input_axis))
        if has_bias(module1):
            set_module_bias(module1, get_module_bias(module1) / scale)


def _along(scale: Tensor, weight: Tensor, axis: int) -> Tensor:
    return scale.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])


def _require_pair(
    module1: nn.Module,
    module2: nn.Module,
    name1: str,
    name2: str,
    output_axis: int = 0,
    input_axis: int = 1,
) -> None:
    for module in (module1, module2):
        if type(module) not in _all_supported_types:
            names = ", ".join(sorted(t.__name__ for t in _all_supported_types))
            raise InvalidRequest(
                f"module type not supported: {type(module1).__name__} and {type(module2).__name__} "
                f"({name1!r} and {name2!r}); equalization works on {names}"
            )
    outputs = get_module_weight(module1).shape[output_axis]
    inputs = get_module_weight(module2).shape[input_axis]
    if outputs != inputs:
        raise _WrongType(
            "Number of output channels of first arg do not match number input channels of second arg: "
            f"{name1!r} has {outputs}, {name2!r} takes {inputs}. A grouped convolution or a layer after a "
            "flatten cannot be the second of a pair"
        )


def converged(
    curr_modules: Mapping[str, Any], prev_modules: Mapping[str, Any], threshold: float = 1e-4
) -> bool:
    """Whether the norms of all changes of weights between two states of the same modules add up to less.

    A previous state of None stands for none yet.

    >>> linear = nn.Linear(2, 2)
    >>> converged({"a": linear}, {"a": copy.deepcopy(linear)})
    True
    """
    if curr_modules.keys() != prev_modules.keys():
        raise InvalidRequest(
            "The keys to the given mappings must have the same set of names of modules: got "
            f"{sorted(curr_modules)} and {sorted(prev_modules)}"
        )
    if None in prev_modules.values():
        return False
    total = 0.0
    for name, module in curr_modules.items():
        change = get_module_weight(module).detach() - get_module_weight(prev_modules[name]).detach()
        total += float(torch.linalg.vector_norm(change))
    return total < threshold


def expand_groups_in_paired_modules_list(
    paired_modules_list: Sequence[Sequence[str]],
) -> list[list[str]]:
    """Each group as its pairs of neighbours.

    >>> expand_groups_in_paired_modules_list([["a", "b", "c"]])
    [['a', 'b'], ['b', 'c']]
    """
    for group in paired_modules_list:
        if len(group) < 2:
            raise InvalidRequest(f"Group must have at least two modules, got {list(group)}")
    return [list(pair) for group in paired_modules_list for pair in itertools.pairwise(group)]


def process_paired_modules_list_to_name(
    model: nn.Module, paired_modules_list: Sequence[Sequence[Any]]
) -> list[list[str]]:
    """The groups with each module replaced by its name; names stay.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> process_paired_modules_list_to_name(model, [[model[0], "1"]])
    [['0', '1']]
    """
    return [
        [item if isinstance(item, str) else get_name_by_module(model, item) for item in group]
        for group in paired_modules_list
    ]


def get_name_by_module(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of a module within a model.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> get_name_by_module(model, model[0])
    '0'
    """
    for site in walk(model):
        if site.module is module:
            return site.path
    raise InvalidRequest(f"module is not in the model: {type(module).__name__}")


def channel_range(input: Tensor, axis: int = 0) -> Tensor:
    """The range, max - min, of each channel along `axis`.

    >>> channel_range(torch.tensor([[0.0, 2.0], [1.0, 5.0]]))
    tensor([2., 4.])
    """
    others = [dim for dim in range(input.dim()) if dim != axis % input.dim()]
    return max_over_ndim(input, others) - min_over_ndim(input, others)


def max_over_ndim(input: Tensor, axis_list: Sequence[int], keepdim: bool = False) -> Tensor:
    """The maximum over several axes.

    >>> max_over_ndim(torch.tensor([[0.0, 2.0], [1.0, 5.0]]), [0, 1]).item()
    5.0
    """
    return input.amax(list(axis_list), keepdim)


def min_over_ndim(input: Tensor, axis_list: Sequence[int], keepdim: bool = False) -> Tensor:
    """The minimum over several axes.

    >>> min_over_ndim(torch.tensor([[0.0, 2.0], [1.0, 5.0]]), [0, 1]).item()
    0.0
    """
    return input.amin(list(axis_list), keepdim)


def _layer(module: Any) -> Any:
    """The layer inside a module fused with ReLU, or the module itself."""
    return module[0] if isinstance(module, nn.Sequential) else module


def get_module_weight(module: nn.Module) -> Any:
    """The weight of a layer or of one fused with ReLU."""
    return _layer(module).weight


def get_module_bias(module: nn.Module) -> Any:
    """The bias of a layer or of one fused with ReLU."""
    return _layer(module).bias


def has_bias(module: nn.Module) -> bool:
    """Whether a layer, or one fused with ReLU, has a bias."""
    return _layer(module).bias is not None


def set_module_weight(module: nn.Module, weight: Tensor) -> None:
    """Write the weight of a layer or of one fused with ReLU; the parameter stays the same object."""
    with torch.no_grad():
        _layer(module).weight.copy_(weight)


def set_module_bias(module: nn.Module, bias: Tensor) -> None:
    """Write the bias of a layer or of one fused with ReLU; the parameter stays the same object."""
    with torch.no_grad():
        _layer(module).bias.copy_(bias)
