"""The models that are measured, with random weights that depend on the seed alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.libraries import FLOAT, Parts


def seeded(seed: int, *shape: int) -> Tensor:
    """Normally distributed numbers, the same ones every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int) -> nn.Module:
    """One linear layer, in a container, for torch.ao replaces children only."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs)).eval()


class Attention(nn.Module):
    """Self-attention of separate linear layers, as BERT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the second dimension of (batch, length, width)."""
        query, key, value = (self._by_head(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, x.shape[2] // self.heads)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention and two linear layers, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        x = self.first(x + self.attention(x))
        return self.second(x + self.down(F.gelu(self.up(x))))


def encoder(layers: int = 6, width: int = 384, heads: int = 12, hidden: int = 1536) -> nn.Module:
    """A sentence encoder of the size of MiniLM, of plain modules, so that every contender can run it."""
    torch.manual_seed(0)
    return nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(layers))).eval()


class Recurrent(nn.Module):
    """An LSTM or GRU that returns its output alone."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int, layers: int) -> None:
        super().__init__()
        self.layers = kind(width, width, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        return self.layers(x)[0]


def recurrent(kind: type[nn.LSTM] | type[nn.GRU], width: int = 256, layers: int = 2) -> nn.Module:
    """A stack of recurrent layers."""
    torch.manual_seed(0)
    return Recurrent(kind, width, layers).eval()


class Stubbed(nn.Module):
    """A model between stubs, for static quantization."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.quant, self.model, self.dequant = parts.quant(), model, parts.dequant()

    def forward(self, x: Tensor) -> Tensor:
        """What the model gives, float to float."""
        return self.dequant(self.model(self.quant(x)))


def linear_stack(layers: int, width: int) -> nn.Sequential:
    """Square linear layers, big enough for memory to show; rows repeat, to be made in little time."""
    stack = nn.Sequential(*(nn.Linear(width, width, device="meta") for _ in range(layers)))
    stack.to_empty(device="cpu")
    height = min(width, 512)
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
                continue
            block = seeded(int(name.partition(".")[0]), height, width) / math.sqrt(width)
            for start in range(0, width, height):
                parameter[start : start + height] = block
    return stack.eval()


# --- ResNet-18 and MobileNetV2; `fusions` names what fuses ---


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int, parts: Parts) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip: Any = parts.functional()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, rectified."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.skip.add_relu(y, self.shortcut(x))

    def fusions(self) -> list[list[str]]:
        """The names of modules that fuse."""
        found = [["conv1", "bn1", "relu1"], ["conv2", "bn2"]]
        return [*found, ["shortcut.0", "shortcut.1"]] if isinstance(self.shortcut, nn.Sequential) else found


class InvertedResidual(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution, with a skip connection where shapes allow it.

    ReLU stands for ReLU6, as in torchvision's quantizable model, for it fuses.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, parts: Parts) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.skip: Any = parts.functional() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """The body's output, plus the input where both have one shape."""
        y = self.body(x)
        return y if self.skip is None else self.skip.add(x, y)

    def fusions(self) -> list[list[str]]:
        """The names of modules that fuse."""
        last = len(self.body) - 2
        found = [[f"body.{i}", f"body.{i + 1}", f"body.{i + 2}"] for i in range(0, last, 3)]
        return [*found, [f"body.{last}", f"body.{last + 1}"]]


_BLOCKS = (BasicBlock, InvertedResidual)


class Classifier(nn.Module):
    """A stem, blocks, and a linear head, between stubs."""

    def __init__(self, stem: nn.Sequential, blocks: list[nn.Module], width: int, parts: Parts) -> None:
        super().__init__()
        self.quant, self.dequant = parts.quant(), parts.dequant()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to scores (batch, 1000)."""
        x = self.blocks(self.stem(self.quant(x)))
        return self.dequant(self.head(self.pool(x).flatten(1)))

    def fusions(self) -> list[list[str]]:
        """The names of modules that fuse."""
        found = [["stem.0", "stem.1", "stem.2"]]
        for i, block in enumerate(self.blocks):
            own = block.fusions() if isinstance(block, _BLOCKS) else [["0", "1", "2"]]
            found += [[f"blocks.{i}.{name}" for name in names] for names in own]
        return found


def _stem(outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(3, outputs, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _resnet18(parts: Parts) -> Classifier:
    stem = _stem(64, 7).append(nn.MaxPool2d(3, 2, 1))
    blocks: list[nn.Module] = []
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [BasicBlock(inputs, outputs, stride, parts), BasicBlock(outputs, outputs, 1, parts)]
        inputs = outputs
    return Classifier(stem, blocks, 512, parts)


# expansion, channels, repetitions, stride
_MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
              (6, 320, 1, 1))  # fmt: skip


def _mobilenet_v2(parts: Parts) -> Classifier:
    blocks: list[nn.Module] = []
    inputs = 32
    for expand, outputs, count, stride in _MOBILENET:
        for i in range(count):
            blocks.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expand, parts))
            inputs = outputs
    blocks.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()))
    return Classifier(_stem(32, 3), blocks, 1280, parts)


_CLASSIFIERS = {"ResNet-18": _resnet18, "MobileNetV2": _mobilenet_v2}
CLASSIFIERS = tuple(_CLASSIFIERS)


@functools.cache
def _trained_state(name: str) -> dict[str, Tensor]:
    """Weights whose batch norms have seen data, so that activations have a trained network's range."""
    torch.manual_seed(0)
    model = _CLASSIFIERS[name](FLOAT).train()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        for seed in range(4):
            model(images(seed, 4, 128))
    return model.state_dict()


def images(seed: int, batch: int, size: int = 224) -> Tensor:
    """Smooth noise of the scale of normalised photographs, channels last."""
    coarse = seeded(seed, batch, 3, size // 16, size // 16)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear") + 0.2 * seeded(
        seed, batch, 3, size, size
    )
    return fine.contiguous(memory_format=torch.channels_last)


def classifier(name: str, parts: Parts) -> Classifier:
    """The model with parts of a library, in evaluation mode; all libraries' have the same weights."""
    model = _CLASSIFIERS[name](parts)
    model.load_state_dict(_trained_state(name))
    return model.eval()
