"""The default tables as classes: sizes, copy or live, and lookups; the names are tested with the mappings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mappings.recipes import DYNAMIC
from quantization import qconfig as qconfigs
from quantization.errors import InvalidRequest
from quantization.workflows import tables
from tests.quantization.factories import spell

# getter -> (size, the live dictionary it returns or copies, whether it is the live one)
GETTERS: dict[str, tuple[int, str, bool]] = {
    "get_default_static_quant_module_mappings": (49, "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS", False),
    "get_default_static_quant_reference_module_mappings": (
        15,
        "DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS",
        False,
    ),
    "get_default_static_sparse_quant_module_mappings": (
        1,
        "DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS",
        False,
    ),
    "get_default_qat_module_mappings": (14, "DEFAULT_QAT_MODULE_MAPPINGS", False),
    "get_default_dynamic_quant_module_mappings": (11, "DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS", True),
    "get_default_dynamic_sparse_quant_module_mappings": (
        1,
        "DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS",
        True,
    ),
    "get_default_float_to_quantized_operator_mappings": (
        6,
        "DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS",
        False,
    ),
}
EMBEDDING_GETTERS = {
    "get_embedding_static_quant_module_mappings": 51,
    "get_embedding_qat_module_mappings": 16,
}


def theirs() -> Any:
    return pytest.importorskip("torch.ao.quantization.quantization_mappings")


@pytest.mark.parametrize("getter", GETTERS)
def test_getters_return_the_table_live_or_copied(getter: str) -> None:
    size, name, live = GETTERS[getter]
    got, table = getattr(tables, getter)(), getattr(tables, name)
    assert got == table and len(got) == size
    assert (got is table) is live


@pytest.mark.parametrize("getter", [*GETTERS, *EMBEDDING_GETTERS])
def test_getters_are_as_long_and_as_live_as_in_torch_ao(getter: str) -> None:
    ours, oracle = getattr(tables, getter), getattr(theirs(), getter)
    assert len(ours()) == len(oracle())
    assert (ours() is ours()) == (oracle() is oracle())


@pytest.mark.parametrize("getter", EMBEDDING_GETTERS)
def test_embedding_variants_extend_the_default(getter: str) -> None:
    got = getattr(tables, getter)()
    assert len(got) == EMBEDDING_GETTERS[getter]
    assert {getattr(tables, getter.replace("embedding", "default"))().items() <= got.items()} == {True}


def names(classes: Any) -> list[str]:
    return sorted(cls.__name__ for cls in classes)


@pytest.mark.parametrize(
    ("getter", "size"),
    [("get_default_qconfig_propagation_list", 63), ("get_default_compare_output_module_list", 105)],
)
def test_derived_sets_are_those_of_torch_ao(getter: str, size: int) -> None:
    ours = getattr(tables, getter)()
    assert len(ours) == size
    assert names(ours) == names(getattr(theirs(), getter)())


@pytest.mark.parametrize(
    "name", ["DEFAULT_STATIC_QUANT_MODULE_MAPPINGS", "DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS"]
)
def test_additions_to_a_live_table_count_from_then_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nn.GELU not in tables.get_default_qconfig_propagation_list()
    monkeypatch.setitem(getattr(tables, name), nn.GELU, nn.Identity)
    assert nn.GELU in tables.get_default_qconfig_propagation_list()
    assert nn.Identity in tables.get_default_compare_output_module_list()
    getter = "get_default_static_quant_module_mappings" if "STATIC" in name else None
    if getter:
        assert getattr(tables, getter)()[nn.GELU] is nn.Identity


def test_changing_a_copy_changes_nothing() -> None:
    tables.get_default_static_quant_module_mappings().clear()
    tables.get_default_qconfig_propagation_list().clear()
    tables.no_observer_set().clear()
    assert len(tables.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS) == 49
    assert len(tables.get_default_qconfig_propagation_list()) == 63
    assert len(tables.no_observer_set()) == 2


def test_the_custom_modules_are_live_and_complete() -> None:
    config = tables.get_default_custom_config_dict()
    assert config is tables.get_default_custom_config_dict()
    observed = config["float_to_observed_custom_module_class"]
    assert names(observed) == ["LSTM", "MultiheadAttention"]
    assert set(observed.values()) == set(config["observed_to_quantized_custom_module_class"])
    assert set(observed.values()) == tables.no_observer_set()


def test_fixed_ranges_have_the_fake_quantizers_of_torch_ao() -> None:
    ours, oracle = tables.DEFAULT_MODULE_TO_ACT_POST_PROCESS, theirs().DEFAULT_MODULE_TO_ACT_POST_PROCESS
    assert {cls: spell(make) for cls, make in ours.items()} == {
        cls: spell(make) for cls, make in oracle.items()
    }


@pytest.mark.parametrize("cls", [nn.Sigmoid, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("training", [True, False])
def test_special_post_processes_as_in_torch_ao(cls: Any, training: bool) -> None:
    module = cls().train(training)
    assert tables._has_special_act_post_process(module) == theirs()._has_special_act_post_process(module)
    ours, oracle = (
        tables._get_special_act_post_process(module),
        theirs()._get_special_act_post_process(module),
    )
    assert spell(ours) == spell(oracle)


def test_operators_are_those_of_torch_ao() -> None:
    assert (
        tables.DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS
        == theirs().DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS
    )
    elu = nn.functional.elu
    assert tables.get_quantized_operator(elu) is theirs().get_quantized_operator(elu)


def test_a_function_without_operator_is_refused() -> None:
    with pytest.raises(
        InvalidRequest, match=r"relu.* does not have corresponding quantized op; these .*'elu'"
    ):
        tables.get_quantized_operator(torch.relu)


def test_classes_are_looked_up() -> None:
    static, dynamic = tables.get_static_quant_module_class, tables.get_dynamic_quant_module_class
    assert static(nn.Linear) is tables.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS[nn.Linear]
    assert (
        static(nn.Linear, is_reference=True)
        is tables.DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS[nn.Linear]
    )
    assert dynamic(nn.LSTM) is tables.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS[nn.LSTM]


def test_an_additional_mapping_wins() -> None:
    assert tables.get_static_quant_module_class(nn.Linear, {nn.Linear: nn.GELU}) is nn.GELU
    assert tables.get_static_quant_module_class(nn.Linear, {nn.Linear: nn.GELU}, True) is nn.GELU
    assert tables.get_dynamic_quant_module_class(nn.GELU, {nn.GELU: nn.ELU}) is nn.ELU


@pytest.mark.parametrize(
    "lookup",
    [
        lambda: tables.get_static_quant_module_class(nn.GELU),
        lambda: tables.get_static_quant_module_class(nn.ReLU6, is_reference=True),
        lambda: tables.get_dynamic_quant_module_class(nn.Conv2d),
    ],
    ids=["static", "reference", "dynamic"],
)
def test_a_class_without_counterpart_is_refused(lookup: Any) -> None:
    with pytest.raises(
        AssertionError, match="does not have a corresponding quantized module class; name one"
    ):
        lookup()


@pytest.mark.parametrize("dtype", DYNAMIC)
def test_dynamic_recipes_resolve(dtype: str) -> None:
    recipe = tables.default_dynamic_spec(getattr(torch, dtype))
    assert recipe is not None
    types, qconfig = recipe
    assert len(types) == len(DYNAMIC[dtype].types)
    assert qconfig is getattr(qconfigs, DYNAMIC[dtype].qconfig)


@pytest.mark.parametrize("dtype", [torch.float32, torch.qint32])
def test_other_dtypes_have_no_recipe(dtype: torch.dtype) -> None:
    assert tables.default_dynamic_spec(dtype) is None
