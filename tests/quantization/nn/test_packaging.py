"""torch.package takes converted models without being told that this library is external code."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.package import PackageExporter, PackageImporter

import quantization as q


def through_a_package(
    model: nn.Module, declare: Callable[[PackageExporter], None] = lambda exporter: None
) -> nn.Module:
    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        declare(exporter)
        exporter.save_pickle("models", "model.pkl", model)
    file.seek(0)
    return PackageImporter(file).load_pickle("models", "model.pkl")


def static(*layers: nn.Module) -> nn.Module:
    model = nn.Sequential(q.QuantStub(), *layers, q.DeQuantStub()).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    prepared(torch.randn(2, 3, 8, 8))
    return q.convert(prepared)


def dynamic(layer: nn.Module) -> nn.Module:
    return q.quantize_dynamic(nn.Sequential(layer))


def embedding() -> nn.Module:
    model = nn.Sequential(nn.Embedding(8, 4))
    model.qconfig = q.float_qparams_weight_only_qconfig
    return q.convert(q.prepare(model))


IMAGES = torch.randn(2, 3, 8, 8)
CASES = {
    "conv": (lambda: static(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES),
    "linear": (lambda: static(nn.Linear(8, 4)), IMAGES),
    "dynamic linear": (lambda: dynamic(nn.Linear(8, 4)), IMAGES),
    "dynamic lstm": (lambda: dynamic(nn.LSTM(8, 4)), torch.randn(5, 2, 8)),
    "embedding": (embedding, torch.tensor([1, 7])),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_converted_model_comes_back_as_it_was(case: tuple[Callable[[], nn.Module], torch.Tensor]) -> None:
    make, x = case
    model = make()
    loaded = through_a_package(model)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    assert str(loaded) == str(model)
    assert [(name, type(m)) for name, m in loaded.named_modules()] == [
        (name, type(m)) for name, m in model.named_modules()
    ]


def test_a_lone_layer_and_one_used_twice_come_back() -> None:
    conv = static(nn.Conv2d(3, 3, 1))[1]
    x = torch.quantize_per_tensor(IMAGES, 0.1, 64, torch.quint8)
    torch.testing.assert_close(through_a_package(conv)(x), conv(x), rtol=0, atol=0)
    tied = through_a_package(nn.Sequential(conv, conv))
    assert tied[0] is tied[1]


def test_a_package_that_denies_the_library_still_does() -> None:
    with pytest.raises(Exception, match=r"denied[\s\S]*quantization"):
        through_a_package(static(nn.Linear(8, 4)), lambda exporter: exporter.deny("quantization.**"))
