"""The layers with a packed weight, as cases: our class, torch.ao's name for it, arguments, an input shape."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import observers
from quantization.errors import QuantizationWarning
from quantization.nn import dynamic, quantized
from quantization.qconfig import QConfig
from tests.support import quiet_jit

PER_TENSOR = QConfig(
    activation=observers.MinMaxObserver.with_args(quant_min=0, quant_max=127),
    weight=observers.default_weight_observer,
)
_INPUTS = {0: (3, 4), 1: (2, 4, 9), 2: (2, 4, 9, 8), 3: (2, 4, 6, 7, 8)}
_GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding": 1},
    "grouped": {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "no-bias": {"bias": False},
}


@dataclass(frozen=True)
class Case:
    """One layer; `oracle` is "module:Class" below torch.ao.nn."""

    name: str
    cls: type[nn.Module]
    oracle: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    inputs: int = 1

    @property
    def is_dynamic(self) -> bool:
        return self.cls.__module__ == dynamic.__name__

    def ours(self) -> Any:
        return build(lambda: self.cls(*self.args, **self.kwargs))

    def theirs(self) -> Any:
        module, _, name = self.oracle.partition(":")
        cls = getattr(importlib.import_module("torch.ao.nn." + module), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(*self.args, **self.kwargs)

    def x(self) -> Tensor:
        x = torch.randn(_INPUTS[self.rank])
        return x if self.is_dynamic else torch.quantize_per_tensor(x, 0.05, 60, torch.quint8)

    def runs_on(self, engine: str) -> bool:
        """Whether torch's engine has the kernels; where it has none, torch.ao fails too."""
        if "float16" in self.name:
            return engine in ("fbgemm", "x86")
        return not (self.rank == 3 and engine == "qnnpack")


def build(make: Callable[[], Any]) -> Any:
    """Call `make`, without the note that dynamic convolutions give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        return make()


def prepared(module: Any, qconfig: QConfig) -> Any:
    """What `prepare` and a calibration batch leave behind."""
    module.qconfig = qconfig
    for child in module.children():
        child.qconfig = qconfig
    module.activation_post_process = qconfig.activation()
    module.activation_post_process(torch.randn(50))
    return module


def _linear_cases() -> Iterator[Case]:
    yield Case("Linear", quantized.Linear, "quantized:Linear", (4, 5))
    yield Case("Linear-no-bias", quantized.Linear, "quantized:Linear", (4, 5, False))
    yield Case("LinearReLU", quantized.LinearReLU, "intrinsic.quantized:LinearReLU", (4, 5))
    yield Case("dynamic-Linear", dynamic.Linear, "quantized.dynamic:Linear", (4, 5))
    yield Case(
        "dynamic-LinearReLU", dynamic.LinearReLU, "intrinsic.quantized.dynamic:LinearReLU", (4, 5, False)
    )
    half = {"dtype": torch.float16}
    yield Case("dynamic-Linear-float16", dynamic.Linear, "quantized.dynamic:Linear", (4, 5), half)
    name = "dynamic-LinearReLU-float16"
    yield Case(name, dynamic.LinearReLU, "intrinsic.quantized.dynamic:LinearReLU", (4, 5), half)


def _conv_cases() -> Iterator[Case]:
    for rank in (1, 2, 3):
        for label, geometry in _GEOMETRIES.items():
            reflects = "padding_mode" in geometry
            if rank == 3 and reflects:
                continue  # torch.ao has no reflection in three dimensions
            for prefix, space in (("Conv", "quantized"), ("ConvReLU", "intrinsic.quantized")):
                name = f"{prefix}{rank}d"
                cls = getattr(quantized, name)
                yield Case(f"{name}-{label}", cls, f"{space}:{name}", (4, 6, 3), geometry, rank)
            for prefix in ("Conv",) if reflects else ("Conv", "ConvTranspose"):
                name = f"{prefix}{rank}d"
                cls = getattr(dynamic, name)
                yield Case(
                    f"dynamic-{name}-{label}", cls, f"quantized.dynamic:{name}", (4, 6, 3), geometry, rank
                )
            if not reflects:
                name = f"ConvTranspose{rank}d"
                cls = getattr(quantized, name)
                yield Case(f"{name}-{label}", cls, f"quantized:{name}", (4, 6, 3), geometry, rank)


LINEAR = list(_linear_cases())
CONV = list(_conv_cases())
CASES = [*LINEAR, *CONV]


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrize a test over cases, under their names."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def skip_unless_runs(case: Case, engine: str) -> None:
    if not case.runs_on(engine):
        pytest.skip(f"{engine} has no kernel for {case.name}")


def fill(module: Any) -> Any:
    """Give a fresh layer a random weight and bias and an output scale, and return it."""
    shape, with_bias = module.weight().shape, module.bias() is not None
    weight = torch.randn(shape)
    if module.weight().is_quantized:
        weight = torch.quantize_per_tensor(weight, 0.015625, 0, torch.qint8)
    module.set_weight_bias(weight, torch.randn(module.bias().shape) if with_bias else None)
    module.scale, module.zero_point = 0.125, 37
    return module


def copies(module: Any) -> Iterator[tuple[str, Any]]:
    """Every way a module is carried from one place to another."""
    yield "deepcopy", copy.deepcopy(module)
    yield "copy", copy.copy(module)
    yield "pickle", pickle.loads(pickle.dumps(module))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    yield "torch.save", torch.load(buffer, weights_only=False)


def scripted(module: Any) -> Iterator[tuple[str, Any]]:
    """The module compiled, and that saved and loaded again."""
    with quiet_jit():
        script = torch.jit.script(module)
        yield "script", script
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
        buffer.seek(0)
        yield "jit.load", torch.jit.load(buffer)


def same_state(ours: nn.Module, theirs: nn.Module) -> None:
    """Assert equal state dicts: keys, order, versions, types, codes and scales."""
    left, right = ours.state_dict(), theirs.state_dict()
    assert list(left) == list(right)
    assert dict(left._metadata) == dict(right._metadata)
    for key in left:
        for a, b in zip(_flat(left[key]), _flat(right[key]), strict=True):
            assert same(a, b), f"{key}: {a} != {b}"


def same(a: Any, b: Any) -> bool:
    """Equality of tensors down to dtype and quantization parameters, or of other values."""
    if not isinstance(a, Tensor):
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_quantized:
        return torch.equal(a, b)
    return a.qscheme() == b.qscheme() and torch.equal(a, b) and torch.equal(a.int_repr(), b.int_repr())


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
