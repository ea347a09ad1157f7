"""What a user set on a module is still there after fusing and swapping; what the class set is not copied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantization as q
from quantization.engine.attributes import carry_attributes


def tagged(module: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.Conv2d(2, 2, 1),
        nn.ConvTranspose2d(2, 2, 1),
        nn.LSTM(2, 2),
        nn.Embedding(2, 2),
        nn.LayerNorm(2),
        nn.BatchNorm2d(2),
        nn.ELU(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_fresh_layer_has_nothing_to_carry(layer):
    target = nn.Identity()
    before = set(vars(target))
    carry_attributes(layer, target)
    assert set(vars(target)) == before


def test_private_known_and_shadowing_attributes_stay_behind():
    source = tagged(nn.Linear(2, 2), tag="a", _secret=1, qconfig=q.default_qconfig)
    source.forward = lambda x: x  # a patched method must not replace the target's
    target = nn.Conv1d(2, 2, 1)
    before = set(vars(target))
    carry_attributes(source, target)
    assert set(vars(target)) - before == {"tag"}
    assert target.tag == "a"


def model_of():
    names = {"name": "stem", "options": {"lr": 0.1}, "table": torch.arange(3)}
    conv = tagged(nn.Conv2d(2, 2, 1), **names)
    linear = tagged(nn.Linear(2, 2), tag="head")
    model = nn.Sequential(q.QuantStub(), conv, nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), linear)
    return model.append(q.DeQuantStub()), names


def check(model, names):
    assert {name: getattr(model[1], name) for name in names} == names
    assert model[5].tag == "head"


def test_static():
    model, names = model_of()
    model = q.fuse_modules(model.eval(), ["1", "2", "3"], inplace=True)
    check(model, names)
    model.qconfig = q.get_default_qconfig("qnnpack")
    q.prepare(model, inplace=True)
    model(torch.randn(2, 2, 1, 1))
    q.convert(model, inplace=True)
    assert type(model[1]) is q.nn.quantized.ConvReLU2d
    check(model, names)


def test_training():
    model, names = model_of()
    model = q.fuse_modules_qat(model.train(), ["1", "2", "3"], inplace=True)
    model.qconfig = q.get_default_qat_qconfig("qnnpack")
    q.prepare_qat(model, inplace=True)
    check(model, names)
    model(torch.randn(2, 2, 1, 1)).sum().backward()
    q.convert(model.eval(), inplace=True)
    check(model, names)


def test_dynamic_and_deepcopy():
    model = nn.Sequential(tagged(nn.Linear(2, 2), tag="a"), tagged(nn.LSTM(2, 2), tag="b"))
    quantized = q.quantize_dynamic(model)
    assert type(quantized[0]) is q.nn.dynamic.Linear
    assert [m.tag for m in quantized] == ["a", "b"]
    assert [m.tag for m in copy.deepcopy(quantized)] == ["a", "b"]


def test_value_is_the_same_object():
    shared = {}
    model = nn.Sequential(tagged(nn.Linear(2, 2), cache=shared))
    q.quantize_dynamic(model, inplace=True)
    assert model[0].cache is shared
