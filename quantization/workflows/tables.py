"""The default tables, as classes: projections of the mappings.

The `DEFAULT_*` dictionaries are live: what a user adds to one applies to every later call. Getters return
copies, except where torch.ao's return the live dictionary, which users rely on to extend it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from mappings.modules import EMBEDDING, MORE, SPARSE
from mappings.observation import AS_IS, CUSTOM, EXTRA_LEAVES, FIXED_RANGES, NO_OBSERVER, SKIPPED
from mappings.operators import QUANTIZED_OPERATORS
from mappings.recipes import DYNAMIC
from mappings.resolve import class_at, find, projection
from observers import (
    default_fixed_qparams_range_0to1_fake_quant,
    default_fixed_qparams_range_neg1to1_fake_quant,
)
from quantization import qconfig as qconfigs
from quantization.backends import torch_quantized
from quantization.errors import InvalidRequest
from quantization.qconfig import QConfig

ModuleTable = dict[Callable[..., Any], Any]

DEFAULT_STATIC_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("static")}
DEFAULT_QAT_MODULE_MAPPINGS: ModuleTable = {**projection("qat")}
DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("dynamic")}
MORE_STATIC_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("static", MORE)}
MORE_QAT_MODULE_MAPPINGS: ModuleTable = {**projection("qat", MORE)}
MORE_DYNAMIC_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("dynamic", MORE)}
DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("reference")}
DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("static", SPARSE)}
DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS: ModuleTable = {**projection("dynamic", SPARSE)}
DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS: dict[Callable[..., Any] | str, Callable[..., Any]] = {
    find(function): getattr(torch_quantized, operator) for function, operator in QUANTIZED_OPERATORS.items()
}
_FAKE_QUANT_OF_RANGE: dict[tuple[float, float], Callable[[], nn.Module]] = {
    (0.0, 1.0): default_fixed_qparams_range_0to1_fake_quant,
    (-1.0, 1.0): default_fixed_qparams_range_neg1to1_fake_quant,
}
DEFAULT_MODULE_TO_ACT_POST_PROCESS: dict[Callable[..., Any], Callable[[], nn.Module]] = {
    find(name): _FAKE_QUANT_OF_RANGE[bounds]
    for name, bounds in FIXED_RANGES.items()
    if name.startswith("nn:")
}
SKIPPED_TYPES: frozenset[Any] = frozenset(find(name) for name in SKIPPED)
AS_IS_TYPES: frozenset[Any] = frozenset(find(name) for name in AS_IS)
_INCLUDE_QCONFIG_PROPAGATE_LIST: set[Callable[..., Any]] = {find(name) for name in EXTRA_LEAVES}
_DEFAULT_CUSTOM_CONFIG_DICT: dict[str, dict[type[nn.Module], Any]] = {
    "float_to_observed_custom_module_class": {find(c.source): class_at(c.observed) for c in CUSTOM},
    "observed_to_quantized_custom_module_class": {
        class_at(c.observed): class_at(c.quantized) for c in CUSTOM
    },
}


def no_observer_set() -> set[Any]:
    """Observed custom classes whose own output is not observed.

    >>> sorted(cls.__name__ for cls in no_observer_set())
    ['LSTM', 'MultiheadAttention']
    """
    return {class_at(name) for name in NO_OBSERVER}


def get_default_static_quant_module_mappings() -> ModuleTable:
    """A copy of the table for post-training static quantization, float and QAT types -> quantized types.

    >>> get_default_static_quant_module_mappings()[nn.Linear].__name__
    'Linear'
    """
    return copy.deepcopy(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)


def get_default_static_quant_reference_module_mappings() -> ModuleTable:
    """A copy of the table for reference quantization: float modules that carry quantized weights.

    >>> len(get_default_static_quant_reference_module_mappings())
    15
    """
    return copy.deepcopy(DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS)


def get_embedding_static_quant_module_mappings() -> ModuleTable:
    """A copy of the static table, with the QAT embeddings.

    >>> len(get_embedding_static_quant_module_mappings())
    51
    """
    return {**get_default_static_quant_module_mappings(), **projection("static", EMBEDDING)}


def get_default_static_sparse_quant_module_mappings() -> ModuleTable:
    """A copy of the table for block-sparse static quantization.

    >>> list(get_default_static_sparse_quant_module_mappings())
    [<class 'torch.nn.modules.linear.Linear'>]
    """
    return copy.deepcopy(DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS)


def get_default_qat_module_mappings() -> ModuleTable:
    """A copy of the table for quantization-aware training, float types -> types with fake quantization.

    >>> get_default_qat_module_mappings()[nn.Conv2d].__name__
    'Conv2d'
    """
    return copy.deepcopy(DEFAULT_QAT_MODULE_MAPPINGS)


def get_embedding_qat_module_mappings() -> ModuleTable:
    """A copy of the QAT table, with embeddings.

    >>> get_embedding_qat_module_mappings()[nn.Embedding].__name__
    'Embedding'
    """
    return {**get_default_qat_module_mappings(), **projection("qat", EMBEDDING)}


def get_default_dynamic_quant_module_mappings() -> ModuleTable:
    """The live table for dynamic quantization: changes to it apply from then on.

    >>> get_default_dynamic_quant_module_mappings() is DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
    True
    """
    return DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS


def get_default_dynamic_sparse_quant_module_mappings() -> ModuleTable:
    """The live table for block-sparse dynamic quantization.

    >>> list(get_default_dynamic_sparse_quant_module_mappings())
    [<class 'torch.nn.modules.linear.Linear'>]
    """
    return DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS


def get_default_custom_config_dict() -> dict[str, dict[type[nn.Module], Any]]:
    """The live table of custom modules: float -> observed, and observed -> quantized.

    >>> sorted(get_default_custom_config_dict())
    ['float_to_observed_custom_module_class', 'observed_to_quantized_custom_module_class']
    """
    return _DEFAULT_CUSTOM_CONFIG_DICT


def get_default_qconfig_propagation_list() -> set[Callable[..., Any]]:
    """The types that `prepare` observes, if they have no children: every source of the live tables.

    >>> nn.Linear in get_default_qconfig_propagation_list(), nn.ReLU in get_default_qconfig_propagation_list()
    (True, False)
    """
    sources = (
        DEFAULT_STATIC_QUANT_MODULE_MAPPINGS.keys()
        | DEFAULT_QAT_MODULE_MAPPINGS.keys()
        | DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS.keys()
    )
    return {*sources, *_INCLUDE_QCONFIG_PROPAGATE_LIST}


def get_default_compare_output_module_list() -> set[Callable[..., Any]]:
    """The types whose outputs the numeric suite records: both sides of the live tables.

    >>> nn.Linear in get_default_compare_output_module_list()
    True
    """
    tables = (
        DEFAULT_STATIC_QUANT_MODULE_MAPPINGS,
        DEFAULT_QAT_MODULE_MAPPINGS,
        DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS,
    )
    both_sides = {cls for table in tables for pair in table.items() for cls in pair}
    return both_sides | _INCLUDE_QCONFIG_PROPAGATE_LIST


def get_default_float_to_quantized_operator_mappings() -> dict[Callable[..., Any] | str, Callable[..., Any]]:
    """A copy of the table of functions, float -> quantized operator.

    >>> nn.functional.elu in get_default_float_to_quantized_operator_mappings()
    True
    """
    return copy.copy(DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS)


def get_quantized_operator(float_op: Callable[..., Any] | str) -> Callable[..., Any]:
    """The quantized operator of a float function; `InvalidRequest` if it has none.

    >>> callable(get_quantized_operator(nn.functional.elu))
    True
    """
    if float_op not in DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS:
        known = [getattr(op, "__name__", op) for op in DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS]
        raise InvalidRequest(
            f"Operator {float_op} does not have corresponding quantized op; these have one: {known}"
        )
    return DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS[float_op]


def get_static_quant_module_class(
    float_module_class: Callable[..., Any],
    additional_static_quant_mapping: Mapping[Callable[..., Any], Any] | None = None,
    is_reference: bool = False,
) -> Any:
    """The statically quantized class of a float class, or its reference class.

    Args:
        additional_static_quant_mapping: further entries, which win over the defaults.

    Raises:
        InvalidRequest: no table lists the class.

    >>> get_static_quant_module_class(nn.ReLU6).__name__
    'ReLU6'
    """
    table = (
        DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS
        if is_reference
        else DEFAULT_STATIC_QUANT_MODULE_MAPPINGS
    )
    return _counterpart(float_module_class, table, additional_static_quant_mapping)


def get_dynamic_quant_module_class(
    float_module_class: Callable[..., Any],
    additional_dynamic_quant_mapping: Mapping[Callable[..., Any], Any] | None = None,
) -> Any:
    """The dynamically quantized class of a float class.

    Args:
        additional_dynamic_quant_mapping: further entries, which win over the defaults.

    Raises:
        InvalidRequest: no table lists the class.

    >>> get_dynamic_quant_module_class(nn.LSTM).__name__
    'LSTM'
    """
    table = DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
    return _counterpart(float_module_class, table, additional_dynamic_quant_mapping)


def default_dynamic_spec(dtype: torch.dtype) -> tuple[tuple[type[nn.Module], ...], QConfig] | None:
    """The types that `quantize_dynamic` quantizes to `dtype` by default and their qconfig; None: no recipe.

    >>> [cls.__name__ for cls in default_dynamic_spec(torch.quint8)[0]]
    ['EmbeddingBag', 'Embedding']
    """
    recipe = DYNAMIC.get(str(dtype).removeprefix("torch."))
    if recipe is None:
        return None
    return tuple(find(name) for name in recipe.types), getattr(qconfigs, recipe.qconfig)


def get_special_act_post_process(module: nn.Module) -> Callable[[], nn.Module] | None:
    """The factory for the output of a module whose range is known beforehand; None for any other module.

    >>> get_special_act_post_process(nn.Sigmoid())().scale.item()
    0.00390625
    """
    return DEFAULT_MODULE_TO_ACT_POST_PROCESS.get(type_before_parametrizations(module))


def has_special_act_post_process(module: nn.Module) -> bool:
    """Whether the module is in training and its output range is known beforehand.

    >>> has_special_act_post_process(nn.Tanh()), has_special_act_post_process(nn.Tanh().eval())
    (True, False)
    """
    return module.training and type(module) in DEFAULT_MODULE_TO_ACT_POST_PROCESS


def _counterpart(
    source: Callable[..., Any],
    table: Mapping[Callable[..., Any], Any],
    additional: Mapping[Callable[..., Any], Any] | None,
) -> Any:
    found = {**table, **(additional or {})}.get(source)
    if found is None:
        raise InvalidRequest(
            f"Floating point module class {source} does not have a corresponding quantized module class; "
            "name one in the additional mapping, or leave the module out by setting its qconfig to None"
        )
    return found


# Names of torch.ao that other code imports.
_get_special_act_post_process = get_special_act_post_process
_has_special_act_post_process = has_special_act_post_process
