"""Fuse runs of float modules before quantization: `fuse_modules` and `fuse_modules_qat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from quantization.engine.copying import copied
from quantization.engine.fuse import (
    as_runs,
    check_runs,
    fuse_run,
    get_module as _get_module,
    set_module as _set_module,
)
from quantization.engine.tree import check_model, restoring
from quantization.errors import InvalidRequest, at
from quantization.markers import FusedModule
from quantization.workflows.fuser_methods import (
    Fuser,
    MatchAllNode as MatchAllNode,
    fuse_conv_bn as fuse_conv_bn,
    fuse_conv_bn_relu as fuse_conv_bn_relu,
    fuse_convtranspose_bn as fuse_convtranspose_bn,
    fuse_linear_bn as fuse_linear_bn,
    get_fuser_method as get_fuser_method,
    get_fuser_method_new as get_fuser_method_new,
    types_of,
)

__all__ = [
    "fuse_conv_bn",
    "fuse_conv_bn_relu",
    "fuse_convtranspose_bn",
    "fuse_known_modules",
    "fuse_linear_bn",
    "fuse_modules",
    "fuse_modules_qat",
    "get_fuser_method",
    "get_fuser_method_new",
]


def fuse_known_modules(
    mod_list: Sequence[nn.Module],
    is_qat: bool,
    additional_fuser_method_mapping: Mapping[Any, Fuser] | None = None,
) -> list[nn.Module]:
    """Fuse modules that follow each other: the fused module, then `nn.Identity` for each of the others.

    >>> [type(m).__name__ for m in fuse_known_modules([nn.Linear(1, 1), nn.ReLU()], is_qat=False)]
    ['LinearReLU', 'Identity']
    """
    done = [type(module).__name__ for module in mod_list if isinstance(module, FusedModule)]
    types = types_of(mod_list)
    try:
        method = get_fuser_method(types, additional_fuser_method_mapping)
    except InvalidRequest as error:
        if not done:
            raise
        raise InvalidRequest(
            f"did not find fuser method for: {types} ; {', '.join(done)} is fused already: list each run once"
        ) from error
    fused = fuse_run(mod_list, method, is_qat)
    if isinstance(fused[0], FusedModule):
        fused[0].training = mod_list[0].training
    return fused


def fuse_modules(
    model: nn.Module,
    modules_to_fuse: Any,
    inplace: bool = False,
    fuser_func: Fuser = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Replace runs of modules by fused ones, for post-training quantization: `model` is in evaluation mode.

    The first module of a run becomes the fused one, the others `nn.Identity`. Fused are conv + bn,
    conv + bn + relu, conv + relu, linear + relu, linear + bn, bn + relu, conv transpose + bn.

    Args:
        modules_to_fuse: dotted names in the order in which the modules run, or a list of such lists. The
            order is checked where the parent is a `nn.Sequential`; elsewhere only that widths agree and that
            no module is listed twice.
        inplace: change `model` itself instead of a copy.
        fuser_func: makes the new modules of a run; default `fuse_known_modules`.
        fuse_custom_config_dict: `{"additional_fuser_method_mapping": {types: method(is_qat, *modules)}}`.

    Raises:
        InvalidRequest: a run cannot be fused; names it and says why, and `model` is then as before.

    >>> fuse_modules(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval(), ["0", "1"])
    Sequential(
      (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
    )
    """
    return _fuse_modules(model, modules_to_fuse, False, inplace, fuser_func, fuse_custom_config_dict)


def fuse_modules_qat(
    model: nn.Module,
    modules_to_fuse: Any,
    inplace: bool = False,
    fuser_func: Fuser = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Replace runs of modules by fused ones, for quantization-aware training: batch norms stay trainable.

    Arguments and errors are those of `fuse_modules`.

    >>> model = fuse_modules_qat(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), [["0", "1"]])
    >>> [type(m).__name__ for m in model]
    ['ConvBn2d', 'Identity']
    """
    return _fuse_modules(model, modules_to_fuse, True, inplace, fuser_func, fuse_custom_config_dict)


def _fuse_modules(
    model: nn.Module,
    modules_to_fuse: Any,
    is_qat: bool,
    inplace: bool = False,
    fuser_func: Fuser = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, Any] | None = None,
) -> nn.Module:
    """What both do; `is_qat` chooses what a run becomes."""
    check_model(model)
    runs = as_runs(modules_to_fuse)
    check_runs(model, runs)
    if not inplace:
        model = copied(model)
    with restoring(model):
        _fuse_modules_helper(model, runs, is_qat, fuser_func, fuse_custom_config_dict)
    return model


def _fuse_modules_helper(
    model: nn.Module,
    modules_to_fuse: Sequence[Sequence[str]],
    is_qat: bool,
    fuser_func: Fuser = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, Any] | None = None,
) -> None:
    """Fuse each run of names in place."""
    extra = (fuse_custom_config_dict or {}).get("additional_fuser_method_mapping", {})
    for run in modules_to_fuse:
        with at(", ".join(run), "fusing"):
            new = fuser_func([_get_module(model, name) for name in run], is_qat, extra)
            if len(new) != len(run):
                raise InvalidRequest(
                    f"fuser_func returned {len(new)} modules for {len(run)}: return the fused module, then "
                    "an nn.Identity for each of the others"
                )
            for name, module in zip(run, new, strict=True):
                _set_module(model, name, module)
