"""QConfigMapping: equal to torch.ao's in structure and content."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from quantization import qconfig_engines, qconfig_mapping as mappings
from quantization.errors import InvalidRequest
from quantization.qconfig import QConfig, default_per_channel_qconfig, default_qconfig
from quantization.qconfig_mapping import (
    QConfigMapping,
    get_default_qat_qconfig_dict,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_dict,
    get_default_qconfig_mapping,
)
from tests.quantization.factories import spell, spell_qconfig
from tests.support import quiet_ao

KNOWN = ("fbgemm", "x86", "qnnpack", "onednn")


def theirs() -> Any:
    return pytest.importorskip("torch.ao.quantization.qconfig_mapping")


@pytest.fixture(autouse=True)
def _all_engines(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine that has every engine and VNNI, so that no default warns."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    if "engine" not in request.fixturenames:
        monkeypatch.setattr(qconfig_engines, "usable_engines", lambda: list(KNOWN))


def spelled(mapping: Any) -> dict[str, Any]:
    """`to_dict()` with every qconfig spelled out."""

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [(*entry[:-1], spell_qconfig(entry[-1])) for entry in value]
        return spell_qconfig(value)

    return {key: visit(value) for key, value in mapping.to_dict().items()}


@pytest.mark.parametrize("backend", KNOWN)
@pytest.mark.parametrize("version", [None, 0, 1])
def test_each_engine_has_the_mapping_of_torch_ao(backend: str, version: int | None) -> None:
    with quiet_ao():
        if version is None:
            ours, oracle = get_default_qconfig_mapping(backend), theirs().get_default_qconfig_mapping(backend)
        else:
            ours = get_default_qat_qconfig_mapping(backend, version)
            oracle = theirs().get_default_qat_qconfig_mapping(backend, version)
    assert spelled(ours) == spelled(oracle)


@pytest.mark.parametrize(
    "name", ["_get_symmetric_qnnpack_qconfig_mapping", "_get_symmetric_qnnpack_qat_qconfig_mapping"]
)
def test_the_symmetric_mappings_are_those_of_torch_ao(name: str) -> None:
    with quiet_ao():
        assert spelled(getattr(mappings, name)()) == spelled(getattr(theirs(), name)())


@pytest.mark.parametrize(
    "name", ["_QCONFIG_STYLE_ORDER", *(n for n in dir(mappings) if n.endswith("_DICT_KEY"))]
)
def test_the_private_names_have_the_values_of_torch_ao(name: str) -> None:
    assert getattr(mappings, name) == getattr(theirs(), name)


def test_the_fixed_ranges_are_those_of_torch_ao() -> None:
    ours, oracle = mappings._FIXED_QPARAMS_OP_TO_OBSERVER, theirs()._FIXED_QPARAMS_OP_TO_OBSERVER
    assert {key: spell(value) for key, value in ours.items()} == {k: spell(v) for k, v in oracle.items()}


def filled(cls: Any) -> Any:
    return (
        cls()
        .set_global("global")
        .set_object_type(nn.Linear, "linear")
        .set_object_type("add", None)
        .set_module_name_regex("foo.*", "regex")
        .set_module_name("foo.bar", "name")
        .set_module_name_object_type_order("foo", nn.Linear, 1, "order")
    )


def test_a_filled_mapping_prints_and_lists_as_in_torch_ao() -> None:
    ours, oracle = filled(QConfigMapping), filled(theirs().QConfigMapping)
    assert ours.to_dict() == oracle.to_dict()
    assert repr(ours) == repr(oracle)
    assert repr(QConfigMapping()) == repr(theirs().QConfigMapping())
    assert vars(ours) == vars(oracle)


def test_a_dictionary_goes_there_and_back() -> None:
    dictionary = filled(QConfigMapping).to_dict()
    assert QConfigMapping.from_dict(dictionary).to_dict() == dictionary
    assert QConfigMapping.from_dict({"unknown": 1}).to_dict() == QConfigMapping().to_dict()


def test_the_last_setting_for_a_key_stands() -> None:
    mapping = QConfigMapping().set_module_name("a", default_qconfig).set_module_name("a", None)
    assert mapping.to_dict()["module_name"] == [("a", None)]


@pytest.mark.parametrize(
    "dictionary",
    [
        {"object_type": [(nn.Linear,)]},
        {"module_name": ["ab"]},
        {"module_name_object_type_order": [("a", None)]},
    ],
)
def test_malformed_entries_are_refused(dictionary: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"holds .*; expected a list of tuples of \d, the qconfig last"):
        QConfigMapping.from_dict(dictionary)


def test_what_is_no_dictionary_is_refused() -> None:
    wrong: Any = [default_qconfig]
    with pytest.raises(InvalidRequest, match="expected a dict as to_dict"):
        QConfigMapping.from_dict(wrong)


def test_the_dictionaries_are_the_mappings() -> None:
    assert get_default_qconfig_dict("x86") == get_default_qconfig_mapping("x86").to_dict()
    ours, expected = get_default_qat_qconfig_dict("x86", 0), get_default_qat_qconfig_mapping("x86", 0)
    assert repr(ours) == repr(expected.to_dict())


def test_the_default_is_that_of_the_current_engine(engine: str) -> None:
    assert spelled(get_default_qconfig_mapping()) == spelled(get_default_qconfig_mapping(engine))
    assert spelled(get_default_qat_qconfig_mapping()) == spelled(get_default_qat_qconfig_mapping(engine))


@pytest.mark.parametrize("getter", [get_default_qconfig_mapping, get_default_qat_qconfig_mapping])
def test_an_unknown_engine_is_refused(getter: Any) -> None:
    with pytest.raises(InvalidRequest, match="backend: tensorrt not supported"):
        getter("tensorrt")


def test_one_qconfig_for_everything_spares_the_fixed_ranges() -> None:
    mapping = mappings._get_default_qconfig_mapping_with_default_qconfig(
        False, "x86", default_per_channel_qconfig
    )
    kinds = mapping.object_type_qconfigs
    assert mapping.global_qconfig is kinds[nn.LayerNorm] is kinds["reshape"] is default_per_channel_qconfig
    sigmoid = kinds[torch.sigmoid]
    assert isinstance(sigmoid, QConfig) and sigmoid is not default_per_channel_qconfig
