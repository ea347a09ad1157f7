"""espnet: layer classes and dtypes by name, then `.to(...)` and `.eval()` on the quantized model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import ENGINES


class Recognizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(6, 8, batch_first=True)
        self.decoder = nn.Linear(8, 5)
        self.ctc = nn.Sequential(nn.Linear(8, 4))
        self.subsample = nn.Conv1d(6, 6, 1)

    def forward(self, x):
        hidden, _ = self.encoder(self.subsample(x.transpose(1, 2)).transpose(1, 2))
        return self.decoder(hidden), self.ctc(hidden)


@pytest.mark.parametrize("layers", [["Linear"], ["LSTM"], ["LSTM", "Linear"]], ids=lambda v: "+".join(v))
@pytest.mark.parametrize("dtype", ["qint8", "float16"])
@pytest.mark.skipif("fbgemm" not in ENGINES, reason="float16 weights need fbgemm")
def test_quantize_by_name_then_move(names, layers, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    model = Recognizer()
    x = torch.randn(2, 7, 6)
    expected = model(x)
    model = names.q.quantize_dynamic(
        model, qconfig_spec={getattr(nn, name) for name in layers}, dtype=getattr(torch, dtype)
    )
    model.to(device="cpu", dtype=torch.float32).eval()
    for name in ("decoder", "ctc", "encoder"):
        assert isinstance(getattr(model, name), nn.Module)
    assert isinstance(model.decoder, names.nnqd.Linear) == ("Linear" in layers)
    assert isinstance(model.encoder, names.nnqd.LSTM) == ("LSTM" in layers)
    for ours, wanted in zip(model(x), expected, strict=True):
        assert (ours - wanted).abs().max() < 0.1


def test_the_rest_of_the_model_takes_another_dtype(names, engine):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    x = torch.randn(3, 6)
    expected = model(x)
    model = names.q.quantize_dynamic(model, {nn.Linear}).to(dtype=torch.bfloat16).eval()
    assert model[1].weight.dtype == torch.bfloat16
    out = model(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.2
