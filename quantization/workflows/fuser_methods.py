"""The functions that fuse a run of modules of given types, and the table that finds them.

A fuser method takes `(is_qat, *modules)` and returns the fused module. Fusing for evaluation folds a batch
norm into the layer before it. Fusing for QAT keeps it, in a fused module that `prepare_qat` turns into a
layer that rounds the folded weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from mappings.fusion import FUSIONS
from mappings.resolve import class_at
from quantization.engine.fuse import check_widths, fold_batch_norm
from quantization.errors import InvalidRequest, Unsupported

__all__ = [
    "fuse_conv_bn",
    "fuse_conv_bn_relu",
    "fuse_convtranspose_bn",
    "fuse_linear_bn",
    "get_fuser_method",
    "get_fuser_method_new",
]

Fuser = Callable[..., Any]
Types = tuple[Any, ...]

_PATTERNS: dict[Types, Any] = {tuple(class_at(name) for name in row.pattern): row for row in FUSIONS}
# What a run becomes, by the types of its modules.
_FOR_TRAINING: dict[Types, Any] = {
    pattern: class_at(row.training) for pattern, row in _PATTERNS.items() if row.training is not None
}
_FOR_EVALUATION: dict[Types, Any] = {pattern: class_at(row.eval) for pattern, row in _PATTERNS.items()}


def fuse_conv_bn(is_qat: bool, conv: nn.Module, bn: nn.Module) -> nn.Module:
    """Fuse a convolution and the batch norm after it: folded for evaluation, a `ConvBnNd` for QAT.

    Raises:
        InvalidRequest: the two differ in mode or width, or evaluation fusing was asked for in training mode.

    >>> fuse_conv_bn(False, nn.Conv2d(3, 4, 1, bias=False).eval(), nn.BatchNorm2d(4).eval())
    Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
    """
    return _fuse_norm("Conv", is_qat, conv, bn)


def fuse_linear_bn(is_qat: bool, linear: nn.Module, bn: nn.Module) -> nn.Module:
    """Fuse a linear layer and the batch norm after it: folded for evaluation, a `LinearBn1d` for QAT.

    >>> type(fuse_linear_bn(True, nn.Linear(2, 3), nn.BatchNorm1d(3))).__name__
    'LinearBn1d'
    """
    return _fuse_norm("Linear", is_qat, linear, bn)


def fuse_convtranspose_bn(is_qat: bool, convt: nn.Module, bn: nn.Module) -> nn.Module:
    """Fold a batch norm into the transposed convolution before it; grouped ones too.

    Raises:
        InvalidRequest: for QAT, where there is no fused module.

    >>> fuse_convtranspose_bn(False, nn.ConvTranspose1d(4, 2, 1).eval(), nn.BatchNorm1d(2).eval())
    ConvTranspose1d(4, 2, kernel_size=(1,), stride=(1,))
    """
    if is_qat:
        _check_modes("ConvTranspose", convt, bn)
        raise InvalidRequest(
            "Fusing ConvTranspose+BatchNorm not yet supported in QAT. Leave the two unfused, or fuse them "
            "for evaluation with fuse_modules(model.eval(), ...) before training"
        )
    return _fuse_norm("ConvTranspose", is_qat, convt, bn)


def fuse_conv_bn_relu(is_qat: bool, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> nn.Module:
    """Fuse convolution, batch norm and ReLU: a `ConvReLUNd` for evaluation, a `ConvBnReLUNd` for QAT.

    >>> parts = nn.Conv2d(1, 1, 1).eval(), nn.BatchNorm2d(1).eval(), nn.ReLU().eval()
    >>> type(fuse_conv_bn_relu(False, *parts)).__name__
    'ConvReLU2d'
    """
    _check_modes("Conv", conv, bn, relu)
    types = types_of((conv, bn, relu))
    table = _FOR_TRAINING if is_qat else _FOR_EVALUATION
    if types not in table:
        mode = "train" if conv.training else "eval"
        raise Unsupported(
            f"Cannot fuse {mode} modules: {(conv, bn, relu)}; expected one of {_spelled(table, length=3)}"
        )
    if is_qat:
        _check_norm_for_training(conv, bn)
        return table[types](conv, bn, relu)
    _check_evaluation(conv)
    return table[types](fold_batch_norm(conv, bn), relu)


def _fuse_norm(kind: str, is_qat: bool, layer: nn.Module, bn: nn.Module) -> nn.Module:
    _check_modes(kind, layer, bn)
    if not is_qat:
        _check_evaluation(layer)
        return fold_batch_norm(layer, bn)
    _check_norm_for_training(layer, bn)
    types = types_of((layer, bn))
    if types not in _FOR_TRAINING:
        raise Unsupported(
            f"Cannot fuse train modules: {(layer, bn)}; expected one of {_spelled(_FOR_TRAINING, length=2)}"
        )
    return _FOR_TRAINING[types](layer, bn)


def _check_modes(kind: str, *modules: nn.Module) -> None:
    if len({module.training for module in modules}) > 1:
        modes = ", ".join(f"{type(m).__name__} in {'train' if m.training else 'eval'}" for m in modules)
        raise InvalidRequest(
            f"{kind} and BN both must be in the same mode (train or eval). Got {modes}: call .train() or "
            ".eval() on the whole model before fusing"
        )


def _check_evaluation(layer: nn.Module) -> None:
    if layer.training:
        raise InvalidRequest(
            f"Fusion only for eval! The {type(layer).__name__} is in training mode: for quantization-aware "
            "training use fuse_modules_qat, for post-training quantization call model.eval() first"
        )


def _check_norm_for_training(layer: nn.Module, bn: nn.Module) -> None:
    check_widths(layer, bn)
    name = type(bn).__name__
    if not getattr(bn, "affine", True):
        raise InvalidRequest(
            f"Only support fusing {name} with affine set to True; build the norm with affine=True"
        )
    if not getattr(bn, "track_running_stats", True):
        raise InvalidRequest(
            f"Only support fusing {name} with tracking_running_stats set to True; build the norm with "
            "track_running_stats=True"
        )


def types_of(modules: Sequence[nn.Module]) -> Types:
    """The types that tables are keyed by: those before `torch.nn.utils.parametrize`."""
    return tuple(type_before_parametrizations(module) for module in modules)


def _spelled(table: Mapping[Types, Any], length: int | None = None, start: Any = None) -> str:
    """The patterns of a table for a message, of one length or with one first type."""
    chosen = [
        " + ".join(part.__name__ for part in pattern)
        for pattern in table
        if (length is None or len(pattern) == length) and (start is None or pattern[0] is start)
    ]
    return ", ".join(chosen)


def _sequential_wrapper2(sequential: Callable[[Any, Any], Any]) -> Fuser:
    """A fuser method from a class of fused modules that is made of two."""

    def fuser_method(is_qat: bool, m1: nn.Module, m2: nn.Module) -> Any:
        return sequential(m1, m2)

    return fuser_method


def _method_for(pattern: Types) -> Fuser:
    """The fuser method of a pattern, by where its batch norm is."""
    if not issubclass(pattern[1], nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
        return _sequential_wrapper2(_FOR_EVALUATION[pattern])
    if len(pattern) == 3:
        return fuse_conv_bn_relu
    if issubclass(pattern[0], nn.Linear):
        return fuse_linear_bn
    return fuse_conv_bn if pattern in _FOR_TRAINING else fuse_convtranspose_bn


_DEFAULT_OP_LIST_TO_FUSER_METHOD: dict[Types, Fuser] = {
    pattern: _method_for(pattern) for pattern in _FOR_EVALUATION
}


def get_fuser_method(
    op_list: Types, additional_fuser_method_mapping: Mapping[Any, Fuser] | None = None
) -> Fuser:
    """The function `(is_qat, *modules) -> fused` for a tuple of module types; your own mapping wins.

    Raises:
        InvalidRequest: no function fuses these types; lists those that start with the same type.

    >>> get_fuser_method((nn.Linear, nn.BatchNorm1d)).__name__
    'fuse_linear_bn'
    """
    methods = {**_DEFAULT_OP_LIST_TO_FUSER_METHOD, **(additional_fuser_method_mapping or {})}
    op_list = tuple(op_list)
    if op_list not in methods:
        known = _spelled(methods, start=op_list[0]) if op_list else ""
        cure = f"runs that start like this one: {known}" if known else f"runs that fuse: {_spelled(methods)}"
        raise InvalidRequest(
            f"did not find fuser method for: {op_list} ; {cure}. Leave other modules unfused, or pass your "
            "own method in fuse_custom_config_dict={'additional_fuser_method_mapping': {types: method}}"
        )
    return methods[op_list]


class MatchAllNode:
    """Stands for any module in a pattern of `get_fuser_method_new`."""


def _reverse2(f: Fuser) -> Fuser:  # pyright: ignore[reportUnusedFunction]
    """A fuser method that takes its two modules last first, as `get_fuser_method_new` lists them."""

    def reversed_fuser(is_qat: bool, x: Any, y: Any) -> Any:
        return f(is_qat, y, x)

    return reversed_fuser


def _reverse3(f: Fuser) -> Fuser:  # pyright: ignore[reportUnusedFunction]
    """The same for a nested pattern of three: `(relu, (bn, conv))`."""

    def reversed_fuser(is_qat: bool, x: Any, w: Any) -> Any:
        y, z = w
        return f(is_qat, z, y, x)

    return reversed_fuser


def _get_valid_patterns(op_pattern: Any) -> list[Any]:
    """Every generalization of a nested pattern, each place itself or `MatchAllNode`, the closest first.

    >>> [len(_get_valid_patterns(p)) for p in (nn.ReLU, (nn.ReLU, nn.Conv2d))]
    [2, 4]
    """
    if isinstance(op_pattern, (tuple, list)):
        parts: list[list[Any]] = [_get_valid_patterns(part) for part in op_pattern]  # pyright: ignore[reportUnknownVariableType]
        return [tuple(choice) for choice in itertools.product(*parts)]
    return [op_pattern, MatchAllNode]


def get_fuser_method_new(op_pattern: Any, fuser_method_mapping: Mapping[Any, Any]) -> Any:
    """The entry of `fuser_method_mapping` whose pattern, last module first, fits `op_pattern` most closely.

    >>> get_fuser_method_new((nn.ReLU, nn.Linear), {(nn.ReLU, MatchAllNode): len}).__name__
    'len'
    """
    for pattern in _get_valid_patterns(op_pattern):
        if fuser_method_mapping.get(pattern) is not None:
            return fuser_method_mapping[pattern]
    raise InvalidRequest(
        f"did not find fuser method for: {op_pattern} ; the mapping has {list(fuser_method_mapping)}"
    )
