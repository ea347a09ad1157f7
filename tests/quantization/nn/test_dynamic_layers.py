"""Dynamically quantized Linear and convolutions beyond equality with torch.ao."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import observers
from quantization.errors import InvalidRequest, QuantizationError, QuantizationWarning, Unsupported
from quantization.nn import dynamic, fused
from quantization.qconfig import (
    QConfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
)
from tests.quantization.nn.weighted_cases import build, same_state

QCONFIGS = [
    pytest.param(default_dynamic_qconfig, id="int8"),
    pytest.param(per_channel_dynamic_qconfig, id="per-channel"),
    pytest.param(float16_dynamic_qconfig, id="float16"),
    pytest.param(None, id="None"),
]


def skip_float16(qconfig: Any, engine: str) -> None:
    if qconfig is float16_dynamic_qconfig and engine not in ("x86", "fbgemm"):
        pytest.skip(f"{engine} has no float16 kernels")


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("kind", [nn.Linear, NonDynamicallyQuantizableLinear])
def test_from_float_equals_torch_ao(kind: type[nn.Module], qconfig: Any, engine: str) -> None:
    nnqd = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    skip_float16(qconfig, engine)
    linear = kind(5, 7)
    linear.qconfig = qconfig
    ours, theirs = dynamic.Linear.from_float(linear), nnqd.Linear.from_float(linear)
    same_state(ours, theirs)
    x = torch.randn(6, 5)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("qconfig", QCONFIGS)
def test_fused_linear_relu_equals_linear_then_relu(qconfig: Any, engine: str) -> None:
    skip_float16(qconfig, engine)
    linear = nn.Linear(5, 7)
    module = fused.LinearReLU(linear, nn.ReLU())
    module.qconfig = linear.qconfig = qconfig
    x = torch.randn(6, 5)
    expected = dynamic.Linear.from_float(linear)(x).relu()
    assert torch.equal(dynamic.LinearReLU.from_float(module)(x), expected)


@pytest.mark.filterwarnings("ignore:torch's kernel of engine")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_come_out_of_float_ones(kind: str, rank: int) -> None:
    nnqd = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    if rank == 3 and torch.backends.quantized.engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    name = f"{kind}{rank}d"
    conv = getattr(nn, name)(4, 6, 3, padding=1)
    conv.qconfig = default_dynamic_qconfig
    with pytest.warns(QuantizationWarning, match="poor numerical accuracy"):
        ours = getattr(dynamic, name).from_float(conv)
    with pytest.warns(UserWarning):
        theirs = getattr(nnqd, name).from_float(conv)
    same_state(ours, theirs)
    x = torch.randn(2, 4, *[6] * rank)
    for reduce_range in (True, False):
        assert torch.equal(ours(x, reduce_range), theirs(x, reduce_range))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    linear, conv = dynamic.Linear(4, 3), build(lambda: dynamic.Conv1d(4, 3, 1))
    x = torch.randn(2, 4, 4).to(dtype)
    assert torch.equal(linear(x), linear(x.float()).to(dtype))
    assert torch.equal(conv(x), conv(x.float()).to(dtype))


def test_empty_batch_gives_an_empty_output() -> None:
    assert dynamic.Linear(4, 3)(torch.zeros(0, 4)).shape == (0, 3)


@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_quantized_input_is_refused_with_the_cure(name: str) -> None:
    module = dynamic.Linear(3, 3) if name == "Linear" else build(lambda: dynamic.Conv2d(3, 3, 1))
    x = torch.quantize_per_tensor(torch.randn(1, 3, 3, 3), 0.1, 0, torch.quint8)
    with pytest.raises(QuantizationError, match=f"dynamic '{name}' must be float.*DeQuantStub"):
        module(x)


def test_source_is_left_as_it_was() -> None:
    linear = nn.Linear(5, 7)
    linear.qconfig = default_dynamic_qconfig
    before = copy.deepcopy(linear)
    module = dynamic.Linear.from_float(linear)
    module.set_weight_bias(torch.quantize_per_tensor(torch.ones(7, 5), 0.1, 0, torch.qint8), None)
    assert torch.equal(linear.weight, before.weight)
    assert vars(linear).keys() == vars(before).keys()


def test_wrong_source_and_wrong_observer_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"Linear.from_float only works for Linear.*got: .*Conv1d"):
        dynamic.Linear.from_float(nn.Conv1d(1, 1, 1))
    linear = nn.Linear(2, 2)
    with pytest.raises(InvalidRequest, match="must have qconfig defined: Linear"):
        dynamic.Linear.from_float(linear)
    linear.qconfig = QConfig(activation=observers.default_observer, weight=observers.MinMaxObserver)
    with pytest.raises(
        InvalidRequest, match=r"torch.qint8 or torch.float16, but MinMaxObserver has torch.quint8"
    ):
        dynamic.Linear.from_float(linear)


@pytest.mark.parametrize("name", ["qnnpack", "onednn"])
def test_float16_without_kernels_names_engine_and_cure(name: str) -> None:
    if name not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch build has no {name}")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, name
    try:
        with pytest.raises(Unsupported, match=f"'{name}', which has no kernels for float16.*qint8"):
            dynamic.Linear(2, 2, dtype=torch.float16)
    finally:
        torch.backends.quantized.engine = before
