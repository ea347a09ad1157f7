"""State dicts of layers with a packed weight: old versions, missing and foreign keys, other shapes."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantization.nn import dynamic, quantized
from tests.quantization.nn.weighted_cases import fill, same, scripted


def with_versions(state: dict[str, Any], **versions: int) -> Any:
    """A state dict as an old file holds it; `own` is the layer's version, `_packed_params` its child's."""
    result = OrderedDict(state)
    names = {"own": ""}
    result._metadata = {names.get(name, name): {"version": v} for name, v in versions.items()}
    return result


def weight_and_bias() -> tuple[Tensor, Tensor]:
    return torch.quantize_per_tensor(torch.randn(5, 4), 0.015625, 0, torch.qint8), torch.randn(5)


NUMBERS = {"scale": torch.tensor(0.5, dtype=torch.float64), "zero_point": torch.tensor([3])}


def old_states() -> list[Any]:
    weight, bias = weight_and_bias()
    version_1 = {**NUMBERS, "weight": weight, "bias": bias}
    version_2 = {
        **NUMBERS,
        "_packed_params.weight": weight,
        "_packed_params.bias": bias,
        "_packed_params.dtype": torch.qint8,
    }
    version_3 = {
        **NUMBERS,
        "_packed_params.dtype": torch.qint8,
        "_packed_params._packed_params": (weight, bias),
    }
    return [
        pytest.param(with_versions(version_1, own=1), weight, bias, id="version-1"),
        pytest.param(with_versions(version_2, own=2, _packed_params=2), weight, bias, id="version-2"),
        pytest.param(with_versions(version_3, own=3, _packed_params=3), weight, bias, id="version-3"),
        pytest.param(version_3, weight, bias, id="plain-dict"),
        pytest.param(version_1, weight, bias, id="plain-dict-of-version-1"),
    ]


@pytest.mark.parametrize(("state", "weight", "bias"), old_states())
def test_every_version_of_a_linear_state_loads(state: Any, weight: Tensor, bias: Tensor) -> None:
    module = quantized.Linear(4, 5)
    assert str(module.load_state_dict(state)) == "<All keys matched successfully>"
    assert same(module.weight(), weight)
    assert torch.equal(module.bias(), bias)
    assert (module.scale, module.zero_point) == (0.5, 3)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["version-1", "version-2", "version-3"])
def test_old_versions_load_as_in_torch_ao(index: int) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    state = old_states()[index].values[0]
    ours, theirs = quantized.Linear(4, 5), nnq.Linear(4, 5)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.quantize_per_tensor(torch.randn(3, 4), 0.05, 60, torch.quint8)
    assert same(ours(x), theirs(x))


@pytest.mark.parametrize("version", [3, 4])
def test_dynamic_linear_computes_as_its_file_did(version: int) -> None:
    nnqd = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    source = fill(nnqd.Linear(4, 5))
    state = source.state_dict()
    state._metadata[""] = {"version": version}
    ours, theirs = dynamic.Linear(4, 5), nnqd.Linear(4, 5)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(64, 4)
    assert torch.equal(ours(x), theirs(x))
    assert ours.version == theirs.version == version
    for way, script in scripted(ours):
        assert torch.equal(script(x), ours(x)), way


def test_dynamic_linear_of_a_plain_dict_computes_as_its_source() -> None:
    source, loaded = fill(dynamic.Linear(4, 5)), dynamic.Linear(4, 5)
    loaded.load_state_dict(dict(source.state_dict()))
    x = torch.randn(64, 4)
    assert torch.equal(loaded(x), source(x))


def test_dynamic_linear_of_version_1_scripts() -> None:
    weight, bias = weight_and_bias()
    module = dynamic.Linear(4, 5)
    module.load_state_dict({**NUMBERS, "weight": weight, "bias": bias})
    assert module.version is None
    x = torch.randn(64, 4)
    for way, script in scripted(module):
        assert torch.equal(script(x), module(x)), way


LAYERS = [
    pytest.param(lambda: quantized.Linear(4, 5), nn.Linear(4, 5), id="Linear"),
    pytest.param(lambda: dynamic.Linear(4, 5), nn.Linear(4, 5), id="dynamic-Linear"),
    pytest.param(lambda: quantized.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1), id="Conv2d"),
]


@pytest.mark.parametrize(("make", "_float"), LAYERS)
def test_missing_keys_are_listed(make: Any, _float: nn.Module) -> None:
    module = make()
    before = module.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*scale.*zero_point"):
        module.load_state_dict({})
    assert list(module.load_state_dict({}, strict=False).missing_keys) != []
    assert module.state_dict()["scale"] == before["scale"]


@pytest.mark.parametrize(("make", "_float"), LAYERS)
def test_foreign_keys_are_listed(make: Any, _float: nn.Module) -> None:
    module = make()
    state = module.state_dict()
    state["stray"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"stray\""):
        module.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        pytest.param(lambda: quantized.Linear(4, 5), quantized.Linear(3, 5), id="Linear"),
        pytest.param(lambda: quantized.Conv2d(4, 5, 1), quantized.Conv2d(4, 6, 1), id="Conv2d"),
    ],
)
def test_another_shape_is_refused_and_the_weight_kept(make: Any, other: nn.Module) -> None:
    module = fill(make())
    before = module.weight()
    with pytest.raises(RuntimeError, match="size mismatch for"):
        module.load_state_dict(other.state_dict())
    assert same(module.weight(), before)


def test_convolution_pickled_by_torch_ao_loads() -> None:
    module = fill(quantized.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"))
    weight, bias = module._weight_bias()
    values = (
        4,
        6,
        (3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        False,
        (0, 0),
        1,
        "reflect",
        weight,
        bias,
        0.125,
        37,
        False,
    )
    loaded = quantized.Conv2d.__new__(quantized.Conv2d)
    loaded.__setstate__(values)
    x = torch.quantize_per_tensor(torch.randn(1, 4, 7, 7), 0.05, 60, torch.quint8)
    assert same(loaded(x), module(x))
    assert loaded.training is False
    assert same(pickle.loads(pickle.dumps(loaded))(x), module(x))


def test_packed_params_stand_alone() -> None:
    params = quantized.LinearPackedParams()
    weight, bias = weight_and_bias()
    params.load_state_dict(
        with_versions({"dtype": torch.qint8, "_packed_params": (weight, bias)}, own=3), strict=True
    )
    assert same(params._weight_bias()[0], weight)
    assert "torch.qint8" in repr(params)
