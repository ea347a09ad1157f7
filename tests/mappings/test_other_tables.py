"""Fusions, observation, operators and dynamic recipes against torch.ao."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mappings.fusion import FUSIONS, Fusion
from mappings.observation import AS_IS, CUSTOM, FIXED_RANGES, NO_OBSERVER, SKIPPED
from mappings.operators import QUANTIZED_OPERATORS
from mappings.recipes import DYNAMIC
from mappings.resolve import find
from tests.support import quiet_ao

ids = pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: "-".join(n[3:] for n in f.pattern))


def small(name: str) -> nn.Module:
    """A one-channel module of a type."""
    cls = getattr(nn, name.removeprefix("nn:"))
    arguments = {"ReLU": (), "Linear": (1, 1)}.get(cls.__name__, (1,) if "Norm" in name else (1, 1, 1))
    return cls(*arguments)


def test_the_patterns_are_those_of_torch_ao() -> None:
    theirs = pytest.importorskip("torch.ao.quantization.fuser_method_mappings")
    expected = {tuple(f"nn:{cls.__name__}" for cls in key) for key in theirs._DEFAULT_OP_LIST_TO_FUSER_METHOD}
    assert {fusion.pattern for fusion in FUSIONS} == expected
    assert len(FUSIONS) == 16


@ids
@pytest.mark.parametrize("kind", ["training", "eval"])
def test_each_run_fuses_into_what_torch_ao_makes(fusion: Fusion, kind: str) -> None:
    theirs = pytest.importorskip("torch.ao.quantization.fuser_method_mappings")
    parts = [small(name).train(kind == "training") for name in fusion.pattern]
    fuse = theirs.get_fuser_method(tuple(type(part) for part in parts))
    expected = getattr(fusion, kind)
    with quiet_ao():
        if expected is None:
            with pytest.raises(Exception, match="not yet supported in QAT"):
                fuse(kind == "training", *parts)
            return
        made = type(fuse(kind == "training", *parts))
    namespace = "nn" if made.__module__.startswith("torch.nn.") else "fused"
    assert f"{namespace}:{made.__name__}" == expected


def test_the_custom_modules_are_those_of_torch_ao() -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    theirs = ao.get_default_custom_config_dict()
    observed = theirs["float_to_observed_custom_module_class"]
    quantized = theirs["observed_to_quantized_custom_module_class"]
    expected = {
        (f"nn:{f.__name__}", f"quantizable:{o.__name__}", f"quantized:{quantized[o].__name__}")
        for f, o in observed.items()
    }
    assert {(row.source, row.observed, row.quantized) for row in CUSTOM} == expected


def test_the_modules_without_observer_are_those_of_torch_ao() -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    assert set(NO_OBSERVER) == {f"quantizable:{cls.__name__}" for cls in ao.no_observer_set()}


def test_the_fixed_ranges_are_those_of_torch_ao() -> None:
    theirs = pytest.importorskip("torch.ao.quantization.qconfig_mapping")._FIXED_QPARAMS_OP_TO_OBSERVER
    ours = {(find(n) if ":" in n else n): bounds for n, bounds in FIXED_RANGES.items()}
    zero_points = {key: make().zero_point.item() for key, make in theirs.items()}
    assert {key: 128 if low < 0 else 0 for key, (low, _) in ours.items()} == zero_points


def test_the_operators_are_those_of_torch_ao() -> None:
    theirs = pytest.importorskip("torch.ao.quantization.quantization_mappings")
    table = theirs.DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS
    expected = {key: op.__name__.rpartition(".")[2] for key, op in table.items()}
    assert {find(function): operator for function, operator in QUANTIZED_OPERATORS.items()} == expected


class Every(nn.Module):
    """One module of each type that some dynamic recipe knows."""

    def __init__(self) -> None:
        super().__init__()
        for cls in (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.RNNCell, nn.GRUCell, nn.RNN):
            self.add_module(cls.__name__, cls(4, 4))
        self.Embedding, self.EmbeddingBag = nn.Embedding(8, 16), nn.EmbeddingBag(8, 16)


@pytest.mark.parametrize("dtype", DYNAMIC)
def test_each_recipe_quantizes_what_torch_ao_quantizes(dtype: str) -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    with quiet_ao():
        model = ao.quantize_dynamic(Every(), dtype=getattr(torch, dtype))
    changed = {f"nn:{name}" for name, child in model.named_children() if type(child) is not getattr(nn, name)}
    assert set(DYNAMIC[dtype].types) == changed


def test_special_observation_concerns_types_that_exist() -> None:
    assert [name for name in (*SKIPPED, *AS_IS) if find(name) is None] == []
