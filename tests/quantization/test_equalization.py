"""Cross-layer equalization: equal ranges, the same function, and torch.ao's numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantization as q
from quantization import equalization as eq


def theirs():
    return pytest.importorskip("torch.ao.quantization._equalize")


def chain():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1, bias=False)
    ).eval()
    with torch.no_grad():
        model[0].weight[1] *= 50
        model[2].weight[:, 2] *= 20
    return model


PAIRS = {
    "Linear": (lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 3)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(4, 2, 1)),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3), lambda: nn.Conv1d(4, 2, 1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_pair_as_in_torch_ao(name):
    first, second = (make() for make in PAIRS[name])
    other = copy.deepcopy(first), copy.deepcopy(second)
    eq.cross_layer_equalization(first, second)
    theirs().cross_layer_equalization(*other)
    for ours, expected in zip((first, second), other, strict=True):
        assert torch.allclose(ours.weight, expected.weight, rtol=1e-6)
        assert torch.allclose(ours.bias, expected.bias, rtol=1e-6)
    assert torch.allclose(eq.channel_range(first.weight), eq.channel_range(second.weight, 1))


def test_a_model_as_in_torch_ao():
    model = chain()
    other = theirs().equalize(copy.deepcopy(model), [["0", "2", "4"]], 1e-6, inplace=True)
    ours = q.equalize(model, [["0", "2", "4"]], 1e-6, inplace=False)
    for mine, expected in zip(ours.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-6)


def test_the_model_computes_the_same_and_quantizes_better():
    model = chain()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    equal = q.equalize(model, [["0", "2", "4"]], inplace=False)
    assert torch.allclose(equal(x), expected, rtol=1e-3, atol=1e-4)

    def error(float_model):
        wrapped = q.QuantWrapper(copy.deepcopy(float_model)).eval()
        wrapped.qconfig = q.default_qconfig
        prepared = q.prepare(wrapped)
        prepared(x)
        return (q.convert(prepared)(x) - expected).norm()

    assert error(equal) < 0.8 * error(model)


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_stay_the_same_objects_and_modules_are_names_too(fused):
    model = chain()
    if fused:
        model = q.fuse_modules(model, [["0", "1"], ["2", "3"]])
    before = list(model.parameters())
    assert q.equalize(model, [[model[0], "2"], ["2", model[4]]]) is model
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert torch.allclose(
        eq.channel_range(eq.get_module_weight(model[2])), eq.channel_range(model[4].weight, 1), rtol=1e-3
    )


def test_a_copy_leaves_the_model_alone():
    model = chain()
    state = copy.deepcopy(model.state_dict())
    q.equalize(model, [["0", "2"]], inplace=False)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_dead_channels_stay_finite():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 2] = 0
    x = torch.randn(4, 3)
    expected = model(x)
    q.equalize(model, [["0", "2"]])
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-6)


BAD = {
    "unknown name": ([["0", "9"]], ValueError, "no module '9'"),
    "unsupported type": ([["0", "1"]], ValueError, "module type not supported: Conv2d and ReLU"),
    "channels": ([["0", "4"]], TypeError, "'0' has 4, '4' takes 5"),
    "one layer": ([["0"]], ValueError, "at least two modules"),
    "foreign module": ([["0", nn.Linear(2, 2)]], ValueError, "not in the model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_groups_change_nothing(case):
    groups, kind, message = BAD[case]
    model = chain()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message) as caught:
        q.equalize(model, [["2", "4"], *groups])
    assert isinstance(caught.value, q.QuantizationError)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("axes", [[0], [1, 2], [0, 2]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_ranges_as_in_torch_ao(axes, keepdim):
    x = torch.randn(2, 3, 4)
    assert torch.equal(eq.max_over_ndim(x, axes, keepdim), theirs().max_over_ndim(x, list(axes), keepdim))
    assert torch.equal(eq.min_over_ndim(x, axes, keepdim), theirs().min_over_ndim(x, list(axes), keepdim))
    assert torch.equal(eq.channel_range(x, axes[0]), theirs().channel_range(x, axes[0]))


def test_converged():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert eq.converged({"a": one}, {"a": one})
    assert not eq.converged({"a": one}, {"a": other})
    assert eq.converged({"a": one}, {"a": other}, 100.0)
    assert not eq.converged({"a": one}, {"a": None})
    with pytest.raises(ValueError, match="same set of names"):
        eq.converged({"a": one}, {"b": one})
