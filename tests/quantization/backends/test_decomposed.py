"""The decomposed operators: against torch.ao's, and registered only where it has not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mappings.resolve import load
from quantization.backends import decomposed
from tests.support import quiet_ao

pytest.importorskip("torch.ao.quantization")

X = torch.randn(3, 4) * 3
SCALE, ZERO = torch.tensor(0.05), torch.tensor(3)
SCALES, ZEROS = torch.tensor([0.02, 0.05, 0.1]), torch.tensor([0, 3, -2])
CODES = torch.randint(-128, 127, (3, 4), dtype=torch.int8)
CALLS: dict[str, tuple[Any, ...]] = {
    "quantize_per_tensor": (X, 0.05, 3, -128, 127, torch.int8),
    "quantize_per_tensor.tensor": (X, SCALE, ZERO, -128, 127, torch.int8),
    "quantize_per_tensor.tensor2": (X, SCALE, ZERO, torch.tensor(-128), torch.tensor(127), torch.int8),
    "dequantize_per_tensor": (CODES, 0.05, 3, -128, 127, torch.int8),
    "dequantize_per_tensor.tensor": (CODES, SCALE, ZERO, -128, 127, torch.int8),
    "dequantize_per_tensor.tensor2": (CODES, SCALE, ZERO, torch.tensor(-128), torch.tensor(127), torch.int8),
    "quantize_per_channel": (X, SCALES, ZEROS, 0, -128, 127, torch.int8),
    "dequantize_per_channel": (CODES, SCALES, ZEROS, 0, -128, 127, torch.int8),
    "choose_qparams.tensor": (X, -128, 127, 1e-5, torch.int8),
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    with quiet_ao():
        load("torch.ao.quantization.fx._decomposed")


def theirs(name: str) -> Any:
    operator, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.quantized_decomposed, operator), overload or "default")


@pytest.mark.parametrize("name", CALLS)
def test_values_are_those_of_torch_ao(name: str) -> None:
    function = decomposed._operators()[name][1]
    ours, expected = function(*CALLS[name]), theirs(name)(*CALLS[name])
    if isinstance(expected, torch.Tensor):
        ours, expected = [ours], [expected]
    for got, wanted in zip(ours, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got.flatten(), wanted.flatten())


@pytest.mark.parametrize("name", decomposed._operators())
def test_signatures_are_those_of_torch_ao(name: str) -> None:
    signature = str(theirs(name)._schema).partition("::")[2]
    assert signature == name + decomposed._operators()[name][0]


def test_what_is_registered_is_left_alone() -> None:
    before = len(decomposed._held)
    decomposed.register()
    assert len(decomposed._held) == before
