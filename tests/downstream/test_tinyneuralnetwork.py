"""TinyNeuralNetwork: the parts of prepare and convert called one by one, and functions monkeypatched."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, q, functional):
        super().__init__()
        self.quant = q.QuantStub()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()
        self.add = functional()
        self.lstm = nn.LSTM(4, 4)
        self.dequant = q.DeQuantStub()

    def forward(self, x):
        y = self.relu(self.bn(self.conv(self.quant(x))))
        y = self.add.add(y, self.sigmoid(y))
        return self.dequant(self.lstm(y.flatten(2).permute(2, 0, 1))[0])


def submodule(names, name):
    return importlib.import_module(f"torch.ao.quantization.{name}")


def test_prepare_in_parts_equals_prepare(names):
    q, engine = names.q, submodule(names, "quantize")
    net = Net(q, names.nnq.FloatFunctional).eval()
    net.lstm.qconfig = None
    net.qconfig = q.get_default_qconfig("qnnpack")
    q.propagate_qconfig_(net, qconfig_dict=None)
    add_observer_ = getattr(engine, "add_observer_", None) or engine._add_observer_
    add_observer_(net, custom_module_class_mapping=q.get_default_custom_config_dict())
    other = Net(q, names.nnq.FloatFunctional).eval()
    other.lstm.qconfig = None
    other.qconfig = q.get_default_qconfig("qnnpack")
    other = q.prepare(other)
    assert [n for n, _ in net.named_modules()] == [n for n, _ in other.named_modules()]


def test_units_are_the_values_of_a_qat_mapping(names):
    q = names.q
    mapping = q.get_default_qat_module_mappings()
    net = Net(q, names.nnq.FloatFunctional).train()
    net.lstm.qconfig = None
    net.qconfig = q.get_default_qat_qconfig("qnnpack")
    net = q.fuse_modules_qat(net, [["conv", "bn", "relu"]])
    q.propagate_qconfig_(net, qconfig_dict=None)
    net = q.convert(net, mapping=mapping, inplace=True, remove_qconfig=False)
    net = q.prepare(net, observer_non_leaf_module_list=set(mapping.values()), inplace=False)
    assert type(net.conv) is names.nniqat.ConvBnReLU2d
    assert hasattr(net.conv, "activation_post_process")
    assert not hasattr(net.conv.bn, "activation_post_process")
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    net.eval()
    quantized = q.convert(net, inplace=False)
    assert type(quantized.conv) is names.nniq.ConvReLU2d


def test_convert_with_a_mapping_and_qconfigs_kept(names):
    q = names.q
    net = nn.Sequential(q.QuantStub(), nn.Linear(4, 4), nn.Hardswish(), q.DeQuantStub()).eval()
    net.qconfig = q.get_default_qconfig("qnnpack")
    prepared = q.prepare(net)
    prepared(torch.randn(8, 4))
    mapping = dict(q.get_default_static_quant_module_mappings())
    mapping.pop(nn.Hardswish)
    kept = q.convert(prepared, mapping, inplace=False, remove_qconfig=False)
    assert type(kept[1]) is names.nnq.Linear
    assert type(kept[2]) is nn.Hardswish
    assert hasattr(kept[2], "qconfig")


class Gate(nn.Module):
    """A custom float module, which `Observed` replaces while it is calibrated."""

    def forward(self, x):
        return x * 2


class Observed(Gate):
    @classmethod
    def from_float(cls, mod):
        observed = cls()
        observed.qconfig = mod.qconfig
        return observed


@pytest.mark.parametrize("hidden", [set(), {Observed}], ids=["none", "Observed"])
def test_a_patched_no_observer_set_decides_what_is_observed(names, hidden):
    """The project reaches the module through `sys.modules`, because a function has the same name."""
    q = names.q
    net = nn.Sequential(Gate()).eval()
    net.qconfig = q.get_default_qconfig("qnnpack")
    custom = {"float_to_observed_custom_module_class": {Gate: Observed}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["torch.ao.quantization.quantize"], "no_observer_set", lambda: hidden)
        if hidden:
            with pytest.warns(UserWarning, match="attached no observer"):
                prepared = q.prepare(net, prepare_custom_config_dict=custom)
        else:
            prepared = q.prepare(net, prepare_custom_config_dict=custom)
    assert type(prepared[0]) is Observed
    assert hasattr(prepared[0], "activation_post_process") == (not hidden)


def test_a_fuser_function_of_the_projects_own(names):
    q = names.q
    runs = []

    def fuser(modules, is_qat=None, additional_fuser_method_mapping=None):
        runs.append([type(m).__name__ for m in modules])
        known = submodule(names, "fuse_modules").fuse_known_modules
        return known(modules, is_qat, additional_fuser_method_mapping)

    net = Net(q, names.nnq.FloatFunctional).eval()
    net = q.fuse_modules(net, [["conv", "bn", "relu"]], fuser_func=fuser)
    assert runs == [["Conv2d", "BatchNorm2d", "ReLU"]]
    assert type(net.conv) is names.nni.ConvReLU2d
    assert type(net.bn) is nn.Identity


def test_a_patched_fuse_known_modules_is_called(names):
    q, fusing = names.q, submodule(names, "fuse_modules")
    before, calls = fusing.fuse_known_modules, []

    def counted(*args, **kwargs):
        calls.append(len(args[0]))
        return before(*args, **kwargs)

    net = Net(q, names.nnq.FloatFunctional).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusing, "fuse_known_modules", counted)
        q.fuse_modules(net, [["conv", "bn", "relu"]], fuser_func=fusing.fuse_known_modules)
    assert calls == [3]
    assert fusing.fuse_known_modules is before


def test_fake_quantizers_of_the_projects_own(names):
    q = names.q

    class Asymmetric(q.FakeQuantize):
        def forward(self, X):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(X)

    activation = Asymmetric.with_args(
        observer=q.MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
        reduce_range=False,
    )
    fixed = q.FixedQParamsFakeQuantize.with_args(
        observer=q.FixedQParamsObserver.with_args(
            scale=1 / 256, zero_point=0, dtype=torch.quint8, quant_min=0, quant_max=255
        )
    )
    net = nn.Sequential(q.QuantStub(), nn.Linear(4, 4), nn.Sigmoid(), q.DeQuantStub()).train()
    net.qconfig = q.QConfig(activation=activation, weight=q.default_weight_fake_quant)
    net[2].qconfig = q.QConfig(activation=fixed, weight=q.default_weight_fake_quant)
    prepared = q.prepare_qat(net)
    assert type(prepared[1].activation_post_process) is Asymmetric
    assert type(prepared[2].activation_post_process) is q.FixedQParamsFakeQuantize
    prepared(torch.randn(8, 4)).sum().backward()
    assert prepared[1].activation_post_process.calls == 1
    prepared.apply(q.disable_observer)
    prepared.apply(lambda m: isinstance(m, q.FakeQuantize) and m.disable_fake_quant())
    assert not int(prepared[1].activation_post_process.fake_quant_enabled)
    assert not int(prepared[1].activation_post_process.observer_enabled)
