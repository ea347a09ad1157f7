"""Small models that between them use every family, written once for both libraries."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from tests.parity.libraries import Library


class ResidualNet(nn.Module):
    """conv-bn-relu blocks with a skip connection, pooling and a linear head."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.skip = library.FloatFunctional()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quant(x))
        x = self.skip.add_relu(x, self.bn(self.conv(x)))
        return self.dequant(self.head(self.pool(x).flatten(1)))

    fusions: ClassVar = [["stem.0", "stem.1", "stem.2"], ["conv", "bn"], ["head.0", "head.1"]]
    shape = (4, 3, 8, 8)


class MobileNet(nn.Module):
    """Depthwise blocks with ReLU6 and Hardswish, concatenation and scalar arithmetic."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12), nn.BatchNorm2d(12)
        )
        self.act = nn.Hardswish()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Hardsigmoid())
        self.f = library.FloatFunctional()
        self.g = library.FloatFunctional()
        self.norm = nn.BatchNorm2d(12)
        self.elu, self.leaky, self.drop = nn.ELU(), nn.LeakyReLU(0.1), nn.Dropout(0.5)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.expand(self.quant(x))))
        x = self.f.mul(self.gate(x), x)
        x = self.leaky(self.elu(self.norm(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.g.cat([x, x], dim=1)
        return self.dequant(self.head(self.drop(x)))

    fusions: ClassVar = [["expand.0", "expand.1"], ["depthwise.0", "depthwise.1"], ["gate.1", "gate.2"]]
    shape = (4, 3, 9, 9)


class Net1d(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.body = nn.Sequential(
            nn.Conv1d(3, 6, 3, padding=2, dilation=2),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Conv1d(6, 4, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.body(self.quant(x)))

    fusions: ClassVar = [["body.0", "body.1", "body.2"], ["body.3", "body.4"]]
    shape = (4, 3, 11)


class Net3d(nn.Module):
    """Three-dimensional convolutions, and a batch norm that stands alone before a ReLU."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.body = nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 1), nn.ReLU()
        )
        self.tail = nn.Sequential(nn.BatchNorm3d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.quant(x))
        return self.dequant(self.tail(x))

    fusions: ClassVar = [["body.0", "body.1", "body.2"], ["body.3", "body.4"], ["tail.0", "tail.1"]]
    shape = (2, 2, 5, 6, 7)


MODELS = (ResidualNet, MobileNet, Net1d, Net3d)


def build(model_class: type, library: Library) -> nn.Module:
    """The model with weights and batch-norm statistics that depend on the class alone."""
    torch.manual_seed(1)
    model = model_class(library)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model
