"""QAT under autocast, and of models that are in half precision themselves; torch.ao fails at both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import functional_modules

HALVES = (torch.bfloat16, torch.float16)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant = q.QuantStub()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.plain = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.add = functional_modules.FloatFunctional()
        self.last = nn.Linear(4, 2)
        self.last_bn = nn.BatchNorm1d(2)
        self.sigmoid = nn.Sigmoid()
        self.dequant = q.DeQuantStub()

    def forward(self, x):
        y = self.plain(self.relu(self.bn(self.conv(self.quant(x))))).mean((2, 3))
        y = self.add.add(self.norm(self.fc(y)), y)
        return self.dequant(self.sigmoid(self.last_bn(self.last(y))))


def prepared(backend, version):
    model = q.fuse_modules_qat(Net().train(), [["conv", "bn", "relu"], ["last", "last_bn"]])
    model.qconfig = q.get_default_qat_qconfig(backend, version)
    return q.prepare_qat(model)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_trains_under_autocast_and_converts(backend, version, dtype):
    model = prepared(backend, version)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.conv.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(torch.randn(4, 3, 6, 6)).float().square().mean()
        loss.backward()
        optimizer.step()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.conv.weight, before)
    x = torch.randn(4, 3, 6, 6)
    expected = model.eval()(x)
    assert (q.convert(model)(x) - expected).abs().max() < 0.05


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_trains_in_half_precision(backend, version, dtype):
    model = prepared(backend, version).to(dtype)
    out = model(torch.randn(4, 3, 6, 6, dtype=dtype))
    assert out.dtype == dtype
    out.sum().backward()
    assert model.conv.weight.grad.dtype == dtype
    fake_quant = model.fc.activation_post_process
    assert fake_quant.scale.dtype == fake_quant.activation_post_process.min_val.dtype == torch.float32


def test_ranges_survive_a_cast_unrounded():
    fake_quant = q.get_default_qat_qconfig("x86").weight()
    fake_quant(torch.randn(4, 7))
    state = {name: value.clone() for name, value in fake_quant.state_dict().items()}
    fake_quant.bfloat16().half()
    assert all(torch.equal(fake_quant.state_dict()[name], value) for name, value in state.items())
    assert fake_quant.double().scale.dtype == torch.float64
