"""Layers whose weight is computed: `weight_norm` and other parametrizations, through every workflow."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import quantization as q


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    return parametrize.register_parametrization(layer, "weight", Doubled())


HOW = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "doubled": doubled,
}
LAYERS = {
    "Linear": lambda: [nn.Linear(4, 4)],
    "LinearReLU": lambda: [nn.Linear(4, 4), nn.ReLU()],
    "LinearBn": lambda: [nn.Linear(4, 4), nn.BatchNorm1d(4)],
    "Conv2d": lambda: [nn.Conv2d(4, 4, 1)],
    "ConvReLU2d": lambda: [nn.Conv2d(4, 4, 1), nn.ReLU()],
    "ConvBnReLU2d": lambda: [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()],
}


def model_of(how, name):
    layers = LAYERS[name]()
    layers[0] = HOW[how](layers[0])
    model = nn.Sequential(q.QuantStub(), *layers, q.DeQuantStub())
    run = [str(i + 1) for i in range(len(layers))] if len(layers) > 1 else None
    x = torch.randn(16, 4) if "Linear" in name else torch.randn(16, 4, 3, 3)
    return model, run, x


def close(quantized, x, expected):
    return (quantized(x) - expected).abs().max() < 0.05 * expected.abs().max() + 0.02


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", HOW)
def test_static(how, name):
    model, run, x = model_of(how, name)
    model.eval()
    expected = model(x)
    fused = q.fuse_modules(model, run) if run else model
    fused.qconfig = q.get_default_qconfig("x86")
    prepared = q.prepare(fused)
    prepared(x)
    quantized = q.convert(prepared)
    assert type(quantized[1]).__module__ == "quantization.nn.quantized"
    assert close(quantized, x, expected)
    assert parametrize.is_parametrized(model[1])  # the source stays as it was
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", HOW)
def test_training(how, name):
    model, run, x = model_of(how, name)
    model.train()
    fused = q.fuse_modules_qat(model, run) if run else model
    fused.qconfig = q.get_default_qat_qconfig("x86")
    prepared = q.prepare_qat(fused)
    names = {n for n, _ in prepared.named_parameters() if "parametrizations.weight" in n}
    assert names
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-5)
    for _ in range(20):
        optimizer.zero_grad()
        (prepared(x) - x).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None for n, p in prepared.named_parameters() if n in names)
    expected = prepared.eval()(x).detach()
    quantized = q.convert(prepared)
    assert close(quantized, x, expected)


@pytest.mark.parametrize("how", HOW)
def test_dynamic(how):
    model, _, x = model_of(how, "Linear")
    expected = model.eval()(x).detach()
    quantized = q.quantize_dynamic(model, {nn.Linear})
    assert type(quantized[1]) is q.nn.dynamic.Linear
    assert close(quantized, x, expected)


def hooked(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(q.QuantStub(), getattr(nn.utils, kind)(nn.Linear(4, 4)), q.DeQuantStub())


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_old_hooks_do_not_follow_into_a_quantized_layer(kind):
    x = torch.randn(16, 4)
    model = hooked(kind).eval()
    model.qconfig = q.get_default_qconfig("x86")
    expected = q.prepare(model, inplace=True)(x).detach()
    assert close(q.convert(model, inplace=True), x, expected)
    model = hooked(kind).eval()
    expected = model(x).detach()
    assert close(q.quantize_dynamic(model, {nn.Linear}, inplace=True), x, expected)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_old_hooks_where_a_parameter_is_needed_name_the_cure(kind):
    model = hooked(kind).train()
    model.qconfig = q.get_default_qat_qconfig("x86")
    with pytest.raises(q.QuantizationError, match=rf"'1'.*parametrizations\.{kind}"):
        q.prepare_qat(model, inplace=True)
    assert type(model[1]) is nn.Linear
    model = nn.Sequential(hooked(kind)[1], nn.ReLU()).eval()
    with pytest.raises(q.QuantizationError, match=rf"remove_{kind}"):
        q.fuse_modules(model, ["0", "1"], inplace=True)
