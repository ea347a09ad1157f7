"""pocket-tts: dynamic quantization of submodules and of single layers wrapped in a Sequential."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.attention = nn.ModuleDict({"in_proj": nn.Linear(8, 24), "out_proj": nn.Linear(24, 8)})
        self.decoder = nn.Conv1d(8, 2, 1)

    def forward(self, x):
        y = self.transformer(x)
        y = self.attention["out_proj"](self.attention["in_proj"](y))
        return self.decoder(y.transpose(1, 2))


def test_in_place_by_submodule(names, engine):
    model = Speech().eval()
    x = torch.randn(2, 5, 8)
    expected = model(x)
    quantized = names.q.quantize_dynamic(model.transformer, {nn.Linear}, dtype=torch.qint8, inplace=True)
    assert quantized is model.transformer
    assert type(model.transformer[0]) is names.nnqd.Linear
    assert type(model.attention["in_proj"]) is nn.Linear
    assert (model(x) - expected).abs().max() < 0.1


@pytest.mark.parametrize("inplace", [False, True])
def test_one_layer_in_a_sequential_of_its_own(names, inplace):
    model = Speech().eval()
    x = torch.randn(2, 5, 8)
    expected = model(x)
    for name, layer in list(model.attention.items()):
        wrapped = nn.Sequential(layer)
        model.attention[name] = names.q.quantize_dynamic(
            wrapped, {nn.Linear}, dtype=torch.qint8, inplace=inplace
        )[0]
    assert {type(layer) for layer in model.attention.values()} == {names.nnqd.Linear}
    assert (model(x) - expected).abs().max() < 0.1


def test_the_detour_is_not_needed(names):
    layer = names.q.quantize_dynamic(nn.Linear(8, 4), {nn.Linear}, dtype=torch.qint8)
    assert type(layer) is names.nnqd.Linear


def test_a_layer_subclass_stays_and_is_spoken_of(names):
    class Cached(nn.Linear):
        pass

    with pytest.warns(UserWarning, match="Linear matches no module"):
        model = names.q.quantize_dynamic(nn.Sequential(Cached(8, 4)), {nn.Linear})
    assert type(model[0]) is Cached
