"""The two libraries with torch.ao's interface, ours and torch.ao itself, under one set of names."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Library:
    """Where a library keeps its workflows (`q`), its observers and its FloatFunctional."""

    q: Any
    observers: Any
    float_functional: Callable[[], nn.Module]

    @property
    def parts(self) -> Parts:
        """What a model needs to be quantized by this library."""
        return Parts(self.q.QuantStub, self.q.DeQuantStub, self.float_functional)


@dataclass(frozen=True)
class Parts:
    """The three things that a model for static quantization is built with."""

    quant: Callable[[], nn.Module]
    dequant: Callable[[], nn.Module]
    functional: Callable[[], nn.Module]


class FloatAdd(nn.Module):
    """`FloatFunctional` of a model that is not to be quantized."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum."""
        return x + y

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum, negative values replaced by zero."""
        return torch.relu(x + y)


FLOAT = Parts(nn.Identity, nn.Identity, FloatAdd)


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it as a whole."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def ours() -> Library:
    """This checkout."""
    quantization = importlib.import_module("quantization")
    observers = importlib.import_module("observers")
    return Library(quantization, observers, quantization.nn.quantized.FloatFunctional)


@functools.cache
def torch_ao() -> Library:
    """torch.ao, as long as torch has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = importlib.import_module("torch.ao.quantization")
        functional = importlib.import_module("torch.ao.nn.quantized").FloatFunctional
    return Library(q, q, functional)


LIBRARIES = {"ours": ours, "torch.ao": torch_ao}


def engines() -> list[str]:
    """The quantized engines of this torch on this machine."""
    return [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]


def default_engine() -> str:
    """torch's default engine; for our library it stands for the automatic choice."""
    return "x86" if "x86" in engines() else engines()[-1]
