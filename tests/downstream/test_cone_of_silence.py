"""One-off scripts: one `quantize_dynamic` line, then the whole module saved, loaded and used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn


class Separator(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU())
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True)
        self.mask = nn.Linear(16, 8)

    def forward(self, x):
        y = self.encoder(x).permute(2, 0, 1)
        return self.mask(self.lstm(y)[0])


def test_whole_module_saved(names, engine, tmp_path):
    model = names.q.quantize_dynamic(Separator().eval(), {nn.Linear, nn.LSTM}, dtype=torch.qint8)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = torch.randn(2, 2, 10)
    assert type(loaded.lstm) is names.nnqd.LSTM
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(copy.deepcopy(loaded)(x), model(x))


@pytest.mark.parametrize("by", ["type", "name"])
def test_spec_as_a_dict(names, by):
    q = names.q
    key = nn.Linear if by == "type" else "mask"
    model = q.quantize_dynamic(Separator(), {key: q.per_channel_dynamic_qconfig})
    assert type(model.mask) is names.nnqd.Linear
    assert type(model.lstm) is nn.LSTM
    assert model.mask.weight().qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)


def test_one_custom_observer_on_both_sides(names):
    """A pruning project: its moving-average observer serves activations and weights."""
    q = names.q

    class MovingAverage(q.MinMaxObserver):
        def forward(self, x_orig):
            low, high = torch.aminmax(x_orig.detach())
            if torch.isinf(self.min_val):
                self.min_val.copy_(low)
                self.max_val.copy_(high)
            self.min_val.mul_(0.9).add_(low, alpha=0.1)
            self.max_val.mul_(0.9).add_(high, alpha=0.1)
            return x_orig

    activation = q.FakeQuantize.with_args(
        observer=MovingAverage,
        quant_min=0,
        quant_max=255,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )
    weight = q.FakeQuantize.with_args(
        observer=MovingAverage,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
    )
    model = nn.Sequential(q.QuantStub(), nn.Linear(6, 4), q.DeQuantStub()).train()
    model.qconfig = q.QConfig(activation=activation, weight=weight)
    prepared = q.prepare_qat(model)
    x = torch.randn(8, 6)
    prepared(x).sum().backward()
    expected = prepared.eval()(x)
    quantized = q.convert(prepared)
    assert type(quantized[1]) is names.nnq.Linear
    assert (quantized(x) - expected).abs().max() < 0.2
