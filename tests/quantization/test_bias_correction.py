"""Bias correction takes the mean error out of every layer, and leaves nothing but the biases changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantization as q
import quantization.bias_correction as correction
from quantization.nn import dynamic, quantized

oracle = "torch.ao.quantization._correct_bias"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant = q.QuantStub()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.plain = nn.Linear(4, 4, bias=False)
        self.fc = nn.Linear(4, 2)
        self.dequant = q.DeQuantStub()

    def forward(self, x):
        y = self.block(self.relu(self.conv(self.quant(x))))
        return self.dequant(self.fc(self.plain(y.mean((2, 3)))))


LAYERS = ("conv", "block.0", "fc")


def pair():
    model = Net().eval()
    model.qconfig = q.get_default_qconfig("qnnpack")
    prepared = q.prepare(model)
    data = [(torch.randn(8, 3, 4, 4), None) for _ in range(3)]
    for x, _ in data:
        prepared(x)
    return model, q.convert(prepared), data


def shift(model):
    for name in LAYERS:
        layer = model.get_submodule(name)
        layer.set_weight_bias(layer.weight(), layer.bias().detach() * 0.5)  # within the range it saw


def biases(model):
    return {name: model.get_submodule(name).bias().detach().clone() for name in LAYERS}


@pytest.mark.parametrize("batches", [None, 2])
def test_shifted_biases_come_back(engine, batches):
    model, converted, data = pair()
    shift(converted)
    before = q.compare(model, converted, [x for x, _ in data]).rows[-1].output
    correction.bias_correction(model, converted, data, neval_batches=batches)
    after = q.compare(model, converted, [x for x, _ in data]).rows[-1].output
    assert after > before + 6
    for name, bias in biases(converted).items():
        assert q.compute_sqnr(model.get_submodule(name).bias, bias) > 25


def test_mean_error_of_each_layer_is_gone():
    model, converted, data = pair()
    shift(converted)
    correction.bias_correction(model, converted, data)
    errors = {}
    for name in LAYERS:
        axis = -1 if name == "fc" else 1
        error = correction._MeanError(model.get_submodule(name), axis)
        handle = converted.get_submodule(name).register_forward_hook(error)
        for x, _ in data:
            converted(x)
        handle.remove()
        errors[name] = error.mean().abs().max()
    # What is left is the rounding of the output: less than one step of its scale.
    assert all(errors[name] < converted.get_submodule(name).scale for name in LAYERS)


def test_model_is_clean_afterwards():
    model, converted, data = pair()
    kinds = [(name, type(module)) for name, module in converted.named_modules()]
    weights = {name: converted.get_submodule(name).weight().int_repr() for name in LAYERS}
    correction.bias_correction(model, converted, data)
    assert [(name, type(module)) for name, module in converted.named_modules()] == kinds
    assert not any(m._forward_hooks for m in (*model.modules(), *converted.modules()))
    assert all(torch.equal(converted.get_submodule(n).weight().int_repr(), w) for n, w in weights.items())
    assert converted.plain.bias() is None


def test_an_iterator_serves_every_layer():
    model, converted, data = pair()
    shift(converted)
    correction.bias_correction(model, converted, iter(data))
    for name, bias in biases(converted).items():
        assert q.compute_sqnr(model.get_submodule(name).bias, bias) > 25


def test_dynamic_layers_on_sequences():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    converted = q.quantize_dynamic(model)
    converted[0].set_weight_bias(converted[0].weight(), converted[0].bias().detach() + 1)
    correction.bias_correction(model, converted, [(torch.randn(16, 5, 4),)], {dynamic.Linear})
    assert torch.allclose(converted[0].bias(), model[0].bias, atol=0.05)


def test_a_failure_puts_the_biases_back():
    model, converted, data = pair()
    shift(converted)
    before = biases(converted)
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) > len(data):  # the first layer has been corrected by then
            raise RuntimeError("interrupted")

    converted.fc.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        correction.bias_correction(model, converted, data)
    assert all(torch.equal(bias, before[name]) for name, bias in biases(converted).items())


def test_nothing_to_do_is_said():
    model, converted, data = pair()
    with pytest.raises(q.InvalidRequest, match="no data"):
        correction.bias_correction(model, converted, [])
    with pytest.warns(q.QuantizationWarning, match="found no layer"):
        correction.bias_correction(model, converted, data, target_modules={quantized.Conv1d})


def test_mean_logger_as_in_torch_ao():
    theirs = pytest.importorskip(oracle).MeanShadowLogger()
    ours = correction.MeanShadowLogger()
    assert ours.stats == theirs.stats
    for _ in range(3):
        x = torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 128, torch.quint8)
        y = torch.randn(2, 3)
        assert ours(x, y) is None
        theirs(x, y)
    assert ours.count == theirs.count == 3
    for side in ("float", "quantized"):
        assert torch.allclose(ours.stats[side], theirs.stats[side])
    ours.clear()
    assert ours.stats == {"float": None, "quantized": None} and ours.count == 0


def test_small_helpers_as_in_torch_ao():
    theirs = pytest.importorskip(oracle)
    model, converted, _ = pair()
    for name in ("a.b.c", "a"):
        assert correction.parent_child_names(name) == theirs.parent_child_names(name)
    assert correction.get_module(model, "block.0") is model.block[0]
    assert correction.get_param(model.fc, "weight") is model.fc.weight
    assert correction.get_param(converted.fc, "weight").is_quantized
    assert correction.get_param(model.fc, "other") is theirs.get_param(model.fc, "other") is None
