"""Inputs that a quantized layer cannot take: one error that names the layer, what came and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantization import QuantizationError, QuantWrapper, convert, default_qconfig, prepare, quantize_dynamic
from tests.quantization.nn.cells import quantized
from tests.support import quiet_jit

LAYERS = {
    "Linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "Conv1d": (lambda: nn.Conv1d(4, 3, 1), (2, 4, 5)),
    "Conv2d": (lambda: nn.Conv2d(4, 3, 1), (2, 4, 5, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 1), (2, 4, 5, 5)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def converted(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    model = QuantWrapper(make())
    model.qconfig = default_qconfig
    prepared = prepare(model.eval())
    prepared(torch.randn(shape))
    return convert(prepared).module


@pytest.mark.filterwarnings("ignore:torch's kernel of engine")
@each_layer
def test_another_width_is_refused(engine: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    layer = converted(make, shape)
    wrong = quantized(2, 5, *shape[2:])
    with pytest.raises(QuantizationError, match=rf"'{type(layer).__name__}' must have size 4 in dimension"):
        layer(wrong)


@pytest.mark.filterwarnings("ignore:torch's kernel of engine")
@each_layer
def test_codes_that_no_kernel_reads_are_refused(
    engine: str, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer = converted(make, shape)
    wrong = torch.quantize_per_tensor(torch.randn(shape), 0.1, 0, torch.qint32)
    with pytest.raises(
        QuantizationError, match=rf"must be torch\.quint8 on engine '{engine}'.*torch\.qint32"
    ):
        layer(wrong)


def test_a_scripted_layer_says_so_too() -> None:
    layer = converted(*LAYERS["Conv2d"])
    with quiet_jit():
        scripted = torch.jit.script(layer)
    with pytest.raises(torch.jit.Error, match="must have size 4 in dimension 1"):
        scripted(quantized(2, 5, 5, 5))


@pytest.mark.parametrize("wrong", [torch.ones(2, 5), torch.tensor(1.0)], ids=["width", "number"])
def test_a_dynamic_layer_refuses_another_width(wrong: Tensor) -> None:
    model = quantize_dynamic(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(QuantizationError, match="'Linear' must have size 4 in dimension -1"):
        model(wrong)


def test_the_checks_are_silent_while_tracing() -> None:
    layer, x = converted(*LAYERS["Conv2d"]), quantized(2, 4, 5, 5)
    with quiet_jit():
        traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(x).int_repr(), layer(x).int_repr())
