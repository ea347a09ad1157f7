"""Fused float modules: structure, exact type checks, life cycle; torch.ao is the oracle."""

from __future__ import annotations

import copy
import io
import operator
import pickle

import pytest
import torch
from torch import nn

from quantization.errors import InvalidRequest
from quantization.markers import FusedModule
from quantization.nn import fused
from tests.support import quiet_jit

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def parts_of(name: str) -> list[nn.Module]:
    rank = int(name[-2]) if name[-1] == "d" else 0
    if name.startswith("Linear"):
        tail = {"LinearReLU": nn.ReLU, "LinearLeakyReLU": nn.LeakyReLU, "LinearTanh": nn.Tanh}.get(name)
        return [nn.Linear(4, 4), tail() if tail else nn.BatchNorm1d(4)]
    if name.startswith("BNReLU"):
        return [NORMS[rank](4), nn.ReLU()]
    parts: list[nn.Module] = [CONVS[rank](4, 4, 1)]
    if "Bn" in name:
        parts.append(NORMS[rank](4))
    if "ReLU" in name:
        parts.append(nn.ReLU())
    return parts


def sample(name: str) -> torch.Tensor:
    rank = 0 if name.startswith("Linear") else int(name[-2])
    return torch.randn(2, 4, *([3] * rank))


CHECKED = [name for name in fused.__all__ if "Add" not in name]


@pytest.mark.parametrize("name", CHECKED)
def test_runs_its_parts_in_order_and_matches_the_oracle(name: str) -> None:
    nni = pytest.importorskip("torch.ao.nn.intrinsic")
    parts = parts_of(name)
    ours = getattr(fused, name)(*parts).eval()
    theirs = getattr(nni, name)(*copy.deepcopy(parts)).eval()
    x = sample(name)
    assert isinstance(ours, FusedModule) and isinstance(ours, nn.Sequential)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x), nn.Sequential(*parts)(x))


@pytest.mark.parametrize("name", CHECKED)
def test_wrong_types_are_named_beside_the_expected_ones(name: str) -> None:
    parts = parts_of(name)
    parts[-1] = nn.ReLU6()
    with pytest.raises(InvalidRequest, match=r"Incorrect types for input modules: .*ReLU6\.") as error:
        getattr(fused, name)(*parts)
    assert isinstance(error.value, AssertionError)
    assert f"{name} is made of " in str(error.value)


def test_subclasses_are_refused_because_their_forward_may_differ() -> None:
    class Scaled(nn.Linear):
        pass

    with pytest.raises(InvalidRequest, match="Scaled and ReLU"):
        fused.LinearReLU(Scaled(2, 2), nn.ReLU())


def test_three_wrong_types_are_listed() -> None:
    with pytest.raises(InvalidRequest, match="input modules: Conv2d, BatchNorm1d, and ReLU"):
        fused.ConvBnReLU2d(nn.Conv2d(1, 1, 1), nn.BatchNorm1d(1), nn.ReLU())


@pytest.mark.parametrize(
    ("make", "tail"), [(fused.LinearReLU, nn.ReLU()), (fused.LinearBn1d, nn.BatchNorm1d(2))]
)
def test_a_parametrized_linear_is_accepted(make, tail: nn.Module) -> None:
    linear = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert make(linear, tail)[0] is linear


@pytest.mark.parametrize("name", CHECKED)
def test_script_copy_and_pickle_keep_the_output(name: str) -> None:
    module, x = getattr(fused, name)(*parts_of(name)).eval(), sample(name)
    expected = module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    with quiet_jit():
        scripted = torch.jit.script(module)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
        scripted,
    ):
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("add", [torch.add, operator.sub])
def test_conv_add_takes_two_inputs(add) -> None:
    conv, relu = nn.Conv2d(2, 2, 1), nn.ReLU()
    x, y = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    plain, rectified = fused.ConvAdd2d(conv, add), fused.ConvAddReLU2d(conv, add, relu)
    assert torch.equal(plain(x, y), add(conv(x), y))
    assert torch.equal(rectified(x, y), relu(add(conv(x), y)))
    assert list(rectified.state_dict()) == list(plain.state_dict()) == ["0.weight", "0.bias"]
    assert torch.equal(copy.deepcopy(rectified)(x, y), rectified(x, y))
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x, y), plain(x, y))


@pytest.mark.parametrize(
    "build",
    [
        lambda: fused.ConvAdd2d(nn.Conv1d(1, 1, 1), torch.add),
        lambda: fused.ConvAddReLU2d(nn.ReLU(), torch.add, nn.ReLU()),
    ],
)
def test_conv_add_wants_a_conv2d(build) -> None:
    with pytest.raises(InvalidRequest, match=r"pass an nn\.Conv2d first"):
        build()


def test_conv_add_scripts() -> None:
    module = fused.ConvAddReLU2d(nn.Conv2d(1, 1, 1), torch.add, nn.ReLU())
    x, y = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    with quiet_jit():
        scripted = torch.jit.script(module)
    assert torch.equal(scripted(x, y), module(x, y))
