"""No `from_float` changes the module it reads: tensors, attributes, observers and children stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantization as q
from quantization.workflows.tables import (
    get_default_dynamic_quant_module_mappings,
    get_default_static_quant_module_mappings,
)

IMAGE = torch.randn(2, 4, 6, 6)
VECTOR = torch.randn(8, 4)


def fused(*layers, training=False):
    model = nn.Sequential(*layers).train(training)
    fuse = q.fuse_modules_qat if training else q.fuse_modules
    return fuse(model, [str(i) for i in range(len(layers))])[0]


STATIC = {
    "Linear": (lambda: nn.Linear(4, 4), VECTOR),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3), IMAGE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3), IMAGE),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "LayerNorm": (lambda: nn.LayerNorm(4), VECTOR),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "ELU": (nn.ELU, VECTOR),
    "Hardswish": (nn.Hardswish, VECTOR),
    "ConvReLU2d": (lambda: fused(nn.Conv2d(4, 4, 3), nn.ReLU()), IMAGE),
    "LinearReLU": (lambda: fused(nn.Linear(4, 4), nn.ReLU()), VECTOR),
    "BNReLU2d": (lambda: fused(nn.BatchNorm2d(4), nn.ReLU()), IMAGE),
}
TRAINED = {
    "Linear": (lambda: nn.Linear(4, 4), VECTOR),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3), IMAGE),
    "ConvBn2d": (lambda: fused(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), training=True), IMAGE),
    "ConvBnReLU2d": (
        lambda: fused(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), training=True),
        IMAGE,
    ),
    "LinearBn1d": (lambda: fused(nn.Linear(4, 4), nn.BatchNorm1d(4), training=True), VECTOR),
    "LinearReLU": (lambda: fused(nn.Linear(4, 4), nn.ReLU(), training=True), VECTOR),
}
DYNAMIC = {
    "Linear": lambda: nn.Linear(4, 4),
    "LSTM": lambda: nn.LSTM(4, 4),
    "GRU": lambda: nn.GRU(4, 4),
    "LSTMCell": lambda: nn.LSTMCell(4, 4),
    "RNNCell": lambda: nn.RNNCell(4, 4),
    "Embedding": lambda: nn.Embedding(8, 4),
    "EmbeddingBag": lambda: nn.EmbeddingBag(8, 4, mode="sum"),
}


def picture(module):
    """Everything `from_float` could touch, by value."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    attributes = {name: sorted(vars(part)) for name, part in module.named_modules()}
    kinds = {name: type(part) for name, part in module.named_modules()}
    hooks = {name: (len(p._forward_hooks), len(p._forward_pre_hooks)) for name, p in module.named_modules()}
    return state, (attributes, kinds, hooks)


def unchanged(module, make):
    parameters = list(module.parameters())
    state, structure = picture(module)
    made = make(module)
    after, structure_after = picture(module)
    assert structure_after == structure
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert made is not module
    return made


@pytest.mark.parametrize("name", STATIC)
def test_static(name):
    make, x = STATIC[name]
    model = nn.Sequential(make()).eval()
    model.qconfig = q.default_qconfig
    prepared = q.prepare(model)
    prepared(x)
    unchanged(prepared[0], get_default_static_quant_module_mappings()[type(prepared[0])].from_float)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_module_converts_twice_to_the_same(name):
    make, x = TRAINED[name]
    model = nn.Sequential(make()).train()
    model.qconfig = q.get_default_qat_qconfig("x86")
    prepared = q.prepare_qat(model)
    for _ in range(3):
        prepared(x * torch.rand(1))
    target = get_default_static_quant_module_mappings()[type(prepared[0])]
    first = unchanged(prepared[0], target.from_float)
    second = unchanged(prepared[0], target.from_float)
    assert torch.equal(first.weight().int_repr(), second.weight().int_repr())
    assert first.scale == second.scale


@pytest.mark.parametrize("name", TRAINED)
def test_float_module_made_trainable(name):
    """Parameters are shared with the float module, so that optimizers go on; nothing of it changes."""
    make, _ = TRAINED[name]
    module = make()
    module.qconfig = q.get_default_qat_qconfig("x86")
    target = q.get_default_qat_module_mappings()[type(module)]
    made = unchanged(module, target.from_float)
    inner = module[0] if isinstance(module, nn.Sequential) else module
    assert made.weight is inner.weight


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic(name):
    module = DYNAMIC[name]().eval()
    module.qconfig = q.default_dynamic_qconfig
    if "Embedding" in name:
        module.qconfig = q.float_qparams_weight_only_qconfig
    unchanged(copy.deepcopy(module), get_default_dynamic_quant_module_mappings()[type(module)].from_float)
