"""pytorch/ao: private names, and observers and fake quantizers derived from the two base classes."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn


@pytest.mark.parametrize(
    "path",
    [
        "quantize._remove_qconfig",
        "stubs.DeQuantStub",
        "fake_quantize.FakeQuantize",
        "fake_quantize.FakeQuantizeBase",
        "observer.ObserverBase",
        "observer._PartialWrapper",
        "observer._with_args",
        "qconfig.QConfig",
        "utils.get_qparam_dict",
    ],
)
def test_names_it_imports(names, path):
    module, _, attribute = path.rpartition(".")
    found = getattr(importlib.import_module(f"torch.ao.quantization.{module}"), attribute)
    assert found.__module__.partition(".")[0] in ("quantization", "observers")


def test_fused_module_base_class(names):
    base = importlib.import_module("torch.ao.nn.intrinsic")._FusedModule
    assert issubclass(names.nni.ConvReLU2d, base)


def test_remove_qconfig(names):
    q = names.q
    remove = importlib.import_module("torch.ao.quantization.quantize")._remove_qconfig
    model = nn.Sequential(q.QuantStub(), nn.Linear(2, 2)).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    remove(prepared)
    assert not any(hasattr(m, "qconfig") or hasattr(m, "activation_post_process") for m in prepared.modules())


def minmax_of(q):
    class AbsMax(q.ObserverBase):
        """Symmetric, straight from the abstract base."""

        def __init__(self, dtype, qscheme=torch.per_tensor_symmetric, is_dynamic=False, **kwargs):
            super().__init__(dtype, is_dynamic)
            self.qscheme = qscheme
            self.quant_min, self.quant_max = (-128, 127) if dtype == torch.qint8 else (0, 255)
            self.register_buffer("top", torch.zeros(1))

        def forward(self, x):
            self.top.copy_(torch.maximum(self.top, x.detach().abs().max()))
            return x

        def calculate_qparams(self):
            zero_point = 128 if self.dtype == torch.quint8 else 0
            return self.top.clamp(min=1e-6) / 127, torch.tensor([zero_point])

    return AbsMax


def fake_quant_of(q):
    class Rounded(q.FakeQuantizeBase):
        """A fake quantizer straight from the abstract base."""

        def __init__(self, observer, **kwargs):
            super().__init__()
            self.activation_post_process = observer(**kwargs)
            self.dtype = self.activation_post_process.dtype
            self.qscheme = self.activation_post_process.qscheme

        def calculate_qparams(self):
            return self.activation_post_process.calculate_qparams()

        def forward(self, x):
            if self.observer_enabled[0] == 1:
                self.activation_post_process(x)
            if self.fake_quant_enabled[0] == 1:
                scale, zero_point = self.calculate_qparams()
                low, high = self.activation_post_process.quant_min, self.activation_post_process.quant_max
                return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), low, high)
            return x

    return Rounded


def test_observer_from_the_base_class(names, engine):
    q = names.q
    observer = minmax_of(q)
    model = nn.Sequential(q.QuantStub(), nn.Linear(6, 4), nn.ReLU(), q.DeQuantStub()).eval()
    model.qconfig = q.QConfig(
        activation=observer.with_args(dtype=torch.quint8), weight=observer.with_args(dtype=torch.qint8)
    )
    prepared = q.prepare(model)
    x = torch.randn(16, 6)
    expected = prepared(x)
    assert (q.convert(prepared)(x) - expected).abs().max() < 0.15


def test_fake_quantizer_from_the_base_class(names, engine):
    q = names.q
    observer, fake_quant = minmax_of(q), fake_quant_of(q)
    model = nn.Sequential(q.QuantStub(), nn.Linear(6, 4), q.DeQuantStub()).train()
    model.qconfig = q.QConfig(
        activation=fake_quant.with_args(observer=observer, dtype=torch.quint8),
        weight=fake_quant.with_args(observer=observer, dtype=torch.qint8),
    )
    prepared = q.prepare_qat(model)
    x = torch.randn(16, 6)
    prepared(x).sum().backward()
    prepared.apply(q.disable_observer)
    assert all(int(m.observer_enabled) == 0 for m in prepared.modules() if isinstance(m, fake_quant))
    expected = prepared.eval()(x)
    assert (q.convert(prepared)(x) - expected).abs().max() < 0.15


def test_custom_module_classes_both_ways(names):
    """`float_to_observed_custom_module_class` and its counterpart in convert."""
    q = names.q

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x)

    class Observed(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return self.linear(x)

        @classmethod
        def from_float(cls, mod):
            observed = cls(mod.linear)
            observed.qconfig = mod.qconfig
            return observed

    class Quantized(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return self.linear(x)

        @classmethod
        def from_observed(cls, mod):
            mod.linear.qconfig = mod.qconfig
            mod.linear.activation_post_process = mod.activation_post_process
            return cls(names.nnq.Linear.from_float(mod.linear))

    model = nn.Sequential(q.QuantStub(), Scaled(), q.DeQuantStub()).eval()
    model.qconfig = q.get_default_qconfig("qnnpack")
    there = {"float_to_observed_custom_module_class": {Scaled: Observed}}
    back = {"observed_to_quantized_custom_module_class": {Observed: Quantized}}
    prepared = q.prepare(model, prepare_custom_config_dict=there)
    x = torch.randn(16, 4)
    expected = prepared(x)
    assert type(prepared[1]) is Observed
    quantized = q.convert(prepared, convert_custom_config_dict=back)
    assert type(quantized[1]) is Quantized
    assert (quantized(x) - expected).abs().max() < 0.15
