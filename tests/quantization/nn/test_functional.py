"""Functions on quantized tensors: torch.ao's results bit for bit, and its refusals by type."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest
import torch

from quantization.errors import QuantizationError, QuantizationWarning
from quantization.nn import functional
from tests.quantization.nn.cells import assert_identical, quantized
from tests.support import quiet_ao, quiet_jit


def weight(*shape: int) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(*shape), 0.02, 0, torch.qint8)


def per_channel(*shape: int) -> torch.Tensor:
    scales = torch.linspace(0.01, 0.03, shape[0], dtype=torch.float64)
    return torch.quantize_per_channel(
        torch.randn(*shape), scales, torch.zeros(shape[0]).long(), 0, torch.qint8
    )


def maps(rank: int) -> torch.Tensor:
    return quantized(2, 4, *[6] * rank)


# id -> (function, arguments, keywords); made anew for each call, because some are changed in place
CALLS: dict[str, Any] = {
    "avg_pool2d": lambda: ((maps(2), 2), {}),
    "avg_pool2d-all": lambda: ((maps(2), 3, 2, 1, True, False, 5), {}),
    "avg_pool3d": lambda: ((maps(3), 2), {}),
    "avg_pool3d-all": lambda: ((maps(3), 3, 2, 1, True, False, 5), {}),
    "adaptive_avg_pool2d": lambda: ((maps(2), 2), {}),
    "adaptive_avg_pool2d-None": lambda: ((maps(2), (None, 3)), {}),
    "adaptive_avg_pool3d": lambda: ((maps(3), (4, 3, 2)), {}),
    "adaptive_avg_pool3d-None": lambda: ((maps(3), (None, 3, 2)), {}),
    "conv1d": lambda: ((maps(1), weight(3, 4, 2), None), {}),
    "conv1d-all": lambda: ((maps(1), weight(4, 2, 3), torch.randn(4), 2, (1,), 2, 2, "zeros", 0.3, 4), {}),
    "conv2d": lambda: ((maps(2), weight(3, 4, 2, 2), None), {}),
    "conv2d-channels": lambda: (
        (maps(2), per_channel(3, 4, 2, 2), torch.randn(3), 2, 1),
        {"scale": 0.3, "zero_point": 4, "dtype": torch.qint8},
    ),
    "conv3d": lambda: ((maps(3), weight(3, 4, 2, 2, 2), torch.randn(3), (2, 1, 2), 1), {"scale": 0.3}),
    "linear": lambda: ((quantized(3, 4), weight(5, 4)), {}),
    "linear-all": lambda: ((quantized(3, 4), weight(5, 4), torch.randn(5), 0.2, 3), {}),
    "linear-scale": lambda: ((quantized(3, 4), weight(5, 4)), {"scale": 0.2}),
    "max_pool1d": lambda: ((maps(1), 2), {}),
    "max_pool2d": lambda: ((maps(2), 2), {}),
    "max_pool2d-all": lambda: ((maps(2), 3, 2, 1, 1, True), {}),
    "celu": lambda: ((maps(2), 0.1, 3, 1.5), {}),
    "leaky_relu": lambda: ((maps(2),), {}),
    "leaky_relu-inplace": lambda: ((maps(2), 0.2, True), {}),
    "leaky_relu-rescaled": lambda: ((maps(2), 0.2), {"scale": 0.1, "zero_point": 3}),
    "leaky_relu-half": lambda: ((maps(2), 0.2), {"scale": 0.1}),
    "hardtanh": lambda: ((maps(2), -0.5, 1.5), {}),
    "hardtanh-inplace": lambda: ((maps(2),), {"inplace": True}),
    "hardswish": lambda: ((maps(2), 0.1, 3), {}),
    "threshold": lambda: ((maps(2), 0.5, -0.3), {}),
    "elu": lambda: ((maps(2), 0.1, 3, 1.5), {}),
    "hardsigmoid": lambda: ((maps(2),), {}),
    "hardsigmoid-inplace": lambda: ((maps(2), True), {}),
    "clamp": lambda: ((maps(2), -0.5, 1.0), {}),
    "clamp-open": lambda: ((maps(2), None, 1.0), {}),
    "interpolate": lambda: ((maps(2), 12), {}),
    "interpolate-3d": lambda: ((maps(3),), {"scale_factor": 2}),
    "interpolate-bilinear": lambda: ((maps(2),), {"scale_factor": 1.5, "mode": "bilinear"}),
    "interpolate-aligned": lambda: ((maps(2), 9), {"mode": "bilinear", "align_corners": True}),
    "upsample": lambda: ((maps(2),), {"scale_factor": 2, "mode": "bilinear", "align_corners": False}),
    "upsample_bilinear": lambda: ((maps(2), 9), {}),
    "upsample_nearest": lambda: ((maps(2),), {"scale_factor": 2}),
}
# Refused by both, with the same builtin type of error.
WRONG: dict[str, Any] = {
    "avg_pool2d-float": lambda: ((torch.randn(1, 2, 4, 4), 2), {}),
    "adaptive_avg_pool3d-float": lambda: ((torch.randn(1, 2, 4, 4, 4), 2), {}),
    "celu-float": lambda: ((torch.randn(3), 0.1, 0), {}),
    "elu-float": lambda: ((torch.randn(3), 0.1, 0), {}),
    "hardswish-float": lambda: ((torch.randn(3), 0.1, 0), {}),
    "hardsigmoid-float": lambda: ((torch.randn(3),), {}),
    "hardtanh-float": lambda: ((torch.randn(3),), {}),
    "clamp-float": lambda: ((torch.randn(3), 0.0, 1.0), {}),
    "threshold-float": lambda: ((torch.randn(3), 0.0, 1.0), {}),
    "interpolate-float": lambda: ((torch.randn(1, 2, 4, 4), 8), {}),
    "threshold-None": lambda: ((maps(2), None, 1.0), {}),
    "threshold-value-None": lambda: ((maps(2), 1.0, None), {}),
    "max_pool1d-indices": lambda: ((maps(1), 2), {"return_indices": True}),
    "max_pool2d-indices": lambda: ((maps(2), 2), {"return_indices": True}),
    "leaky_relu-rescaled-inplace": lambda: ((maps(2), 0.1, True, 0.1, 3), {}),
    "conv2d-reflect": lambda: ((maps(2), weight(3, 4, 2, 2), None), {"padding_mode": "reflect"}),
    "conv2d-float": lambda: ((torch.randn(1, 4, 6, 6), weight(3, 4, 2, 2), None), {}),
    "conv2d-qint8": lambda: ((quantized(1, 4, 6, 6, dtype=torch.qint8), weight(3, 4, 2, 2), None), {}),
    "conv2d-float-weight": lambda: ((maps(2), torch.randn(3, 4, 2, 2), None), {}),
    "conv1d-rank": lambda: ((maps(2), weight(3, 4, 2), None), {}),
    "conv2d-rank": lambda: ((maps(1), weight(3, 4, 2, 2), None), {}),
    "conv3d-rank": lambda: ((maps(2), weight(3, 4, 2, 2, 2), None), {}),
}


def call(where: Any, name: str, table: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    arguments, keywords = table[name]()
    return getattr(where, name.partition("-")[0])(*arguments, **keywords)


@pytest.fixture
def oracle() -> Any:
    pytest.importorskip("torch.ao")
    return importlib.import_module("torch.ao.nn.quantized.functional")


@pytest.mark.filterwarnings("ignore:nn.quantized.functional.upsample")
@pytest.mark.filterwarnings("ignore:Quantized Adaptive Average Pool 3D is not implemented for QNNPACK")
@pytest.mark.parametrize("name", CALLS)
def test_results_equal_torch_ao(engine: str, oracle: Any, name: str) -> None:
    try:
        with quiet_ao():
            expected = call(oracle, name, CALLS)
    except RuntimeError as refusal:  # of the engine itself: qnnpack clamps on both sides only
        with pytest.raises(type(refusal), match=re.escape(str(refusal).splitlines()[0])):
            call(functional, name, CALLS)
        return
    assert_identical(call(functional, name, CALLS), expected)


@pytest.mark.parametrize("name", WRONG)
def test_refusals_are_torch_ao_s_and_ours(oracle: Any, name: str) -> None:
    with pytest.raises(Exception, match=r".") as theirs:
        call(oracle, name, WRONG)
    with pytest.raises(QuantizationError) as ours:
        call(functional, name, WRONG)
    assert isinstance(ours.value, theirs.type)
    words = str(theirs.value).rstrip("!")
    assert str(ours.value).startswith(words)


@pytest.mark.parametrize("function", ["linear", "leaky_relu"])
def test_what_torch_ao_lets_fail_in_the_kernel_is_refused_by_name(function: str) -> None:
    x = torch.randn(2, 4)
    with pytest.raises(QuantizationError, match=rf"Input to 'quantized\.{function}' must be quantized"):
        if function == "linear":
            functional.linear(x, weight(3, 4))
        else:
            functional.leaky_relu(x, 0.1, scale=0.1, zero_point=0)


def test_linear_refuses_a_float_weight() -> None:
    with pytest.raises(QuantizationError, match="its weight"):
        functional.linear(quantized(2, 4), torch.randn(3, 4))


@pytest.mark.parametrize("name", ["leaky_relu-inplace", "hardtanh-inplace", "hardsigmoid-inplace"])
def test_in_place_changes_the_input(name: str) -> None:
    arguments, keywords = CALLS[name]()
    assert getattr(functional, name.partition("-")[0])(*arguments, **keywords) is arguments[0]


@pytest.mark.parametrize("name", ["upsample", "upsample_bilinear", "upsample_nearest"])
def test_the_old_names_warn_at_the_caller(name: str) -> None:
    with pytest.warns(QuantizationWarning, match=rf"functional\.{name} is deprecated") as caught:
        call(functional, name, CALLS)
    assert caught[0].filename == __file__


SCRIPTED = (
    "adaptive_avg_pool2d adaptive_avg_pool3d celu clamp elu hardsigmoid hardswish hardtanh leaky_relu linear "
    "threshold"
).split()


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripts(name: str) -> None:
    with quiet_jit():
        compiled = torch.jit.script(getattr(functional, name))
    torch.manual_seed(1)
    arguments, keywords = CALLS[name]()
    assert_identical(compiled(*arguments, **keywords), call(functional, name, CALLS))


def test_names_and_parameters_are_torch_ao_s(oracle: Any) -> None:
    assert sorted(functional.__all__) == sorted(oracle.__all__)
    for name in oracle.__all__:
        ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (functional, oracle))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
