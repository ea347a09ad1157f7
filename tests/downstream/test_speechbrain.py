"""speechbrain: static and dynamic quantization mixed by submodule path, with a wrapper class of its own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn


class Asr(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"cnn": nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())})
        self.encoder["rnn"] = nn.GRU(4 * 4, 8, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 3))

    def forward(self, x):
        y = self.encoder["cnn"](x).transpose(1, 2).flatten(2)
        return self.decoder(self.encoder["rnn"](y)[0])


def wrapper(q, inner):
    class StaticQuant(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = q.QuantStub()
            self.model = inner
            self.dequant = q.DeQuantStub()

        def forward(self, x, *args, **kwargs):
            return self.dequant(self.model(self.quant(x), *args, **kwargs))

    return StaticQuant()


def set_submodule(model, path, module):
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, (nn.ModuleDict, nn.Sequential)):
        owner._modules[name] = module
    else:
        setattr(owner, name, module)


def custom_quantize(
    q, model, dynamic_modules, static_modules, data, dynamic_targets, dynamic_dtype, static_qconfig
):
    model.eval()
    for path in dynamic_modules:
        part = model.get_submodule(path)
        with warnings.catch_warnings():
            # One set of types serves every part, so some are not found in each.
            warnings.filterwarnings("ignore", ".*matches no module", UserWarning)
            part = q.quantize_dynamic(part, dynamic_targets, dtype=dynamic_dtype)
        set_submodule(model, path, part)
    for path in static_modules:
        part = wrapper(q, model.get_submodule(path))
        part.qconfig = static_qconfig
        q.prepare(part, inplace=True)
        set_submodule(model, path, part)
    for x in data:
        model(x)
    for path in static_modules:
        q.convert(model.get_submodule(path), inplace=True)
    return model


@pytest.mark.parametrize("targets", [{nn.Linear, nn.GRU}, None])
def test_static_and_dynamic_parts_of_one_model(names, engine, targets):
    model = Asr().eval()
    data = [torch.randn(2, 1, 9, 6) for _ in range(3)]
    expected = model(data[0])
    model = custom_quantize(
        names.q,
        model,
        ["encoder.rnn", "decoder"],
        ["encoder.cnn"],
        data,
        targets,
        torch.qint8,
        names.q.default_qconfig,
    )
    assert type(model.encoder["cnn"].model[0]) is names.nnq.Conv2d
    assert type(model.encoder["rnn"]) is names.nnqd.GRU
    assert type(model.decoder[2]) is names.nnqd.Linear
    assert (model(data[0]) - expected).abs().max() < 0.1
    assert set(model.state_dict()) > {"encoder.cnn.quant.scale", "decoder.0.scale"}


def test_parts_by_their_own_qconfig(names, engine):
    """The same without a wrapper class: only the submodule with a qconfig is quantized."""
    q = names.q
    model = Asr().eval()
    model.encoder["cnn"] = q.QuantWrapper(model.encoder["cnn"])
    model.encoder["cnn"].qconfig = q.default_qconfig
    prepared = q.prepare(model)
    x = torch.randn(2, 1, 9, 6)
    expected = prepared(x)
    quantized = q.convert(prepared)
    assert type(quantized.encoder["cnn"].module[0]) is names.nnq.Conv2d
    assert type(quantized.decoder[0]) is nn.Linear
    assert (quantized(x) - expected).abs().max() < 0.1
