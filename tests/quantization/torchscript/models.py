"""Script modules to quantize, the oracle, and comparisons that compare bits."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quantization
from tests.support import quiet_jit

# For the tests of on-device quantization.
QCONFIGS = {
    "tensor": quantization.default_dynamic_qconfig,
    "channel": quantization.per_channel_dynamic_qconfig,
}
EVERYWHERE = {"": quantization.default_dynamic_qconfig}


class Block(nn.Module):
    """Convolution, batch norm with statistics that matter, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 4.0)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class Convolutional(nn.Module):
    """Nested blocks, a residual addition, a linear head."""

    example = staticmethod(lambda: torch.randn(2, 3, 10, 10))

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 8)
        self.body = nn.Sequential(Block(8, 8))
        self.skip = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((self.body(x) + self.skip(x)).mean((2, 3)))


class Tower(nn.Module):
    """Nested linear layers, one of them functional."""

    example = staticmethod(lambda: torch.randn(4, 16))

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 32)
        self.inner = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
        self.weight = nn.Parameter(torch.randn(8, 16))

    def forward(self, x):
        return functional.linear(self.inner(self.fc1(x)), self.weight)


class TwoMethods(nn.Module):
    """A model with another method than forward, a default argument and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.names = ["a", "b"]

    def forward(self, x):
        return self.head(self.fc(x))

    @torch.jit.export
    def embed(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.fc(x) * scale


def compiled(model: nn.Module, how: str, example: Tensor | None = None) -> Any:
    """`model` in evaluation mode as a script module, scripted or traced."""
    with quiet_jit():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.script(model.eval()) if how == "script" else torch.jit.trace(model.eval(), example)


def lite_file(model: Any) -> bytes:
    """What the lite interpreter loads; torch announces its end when writing one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Lite Interpreter is deprecated")
        return model._save_to_buffer_for_lite_interpreter()


def oracle() -> tuple[ModuleType, ModuleType]:
    """torch.ao.quantization and its quantize_jit module, whose name a function hides."""
    ao = pytest.importorskip("torch.ao.quantization")
    return ao, sys.modules["torch.ao.quantization.quantize_jit"]


def calibrate(model: Any, batches: list[Tensor]) -> None:
    """What is given as run_fn."""
    for batch in batches:
        model(batch)


def state(model: Any) -> list[Any]:
    """All that a failed call must leave alone: the code of each method, the module tree and the tensors."""
    codes = [str(model._c._get_method(name).graph) for name in model._c._method_names()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [
        model._c._method_names(),
        codes,
        [name for name, _ in model.named_modules()],
        tensors,
        model.training,
    ]


def same_state(before: list[Any], after: list[Any]) -> bool:
    """Whether two answers of `state` are equal."""
    if before[:3] != after[:3] or before[4] != after[4] or before[3].keys() != after[3].keys():
        return False
    return all(torch.equal(tensor, after[3][name]) for name, tensor in before[3].items())


def silent(action: Any, *arguments: Any) -> Any:
    """Call with every warning ignored: for the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action(*arguments)
