"""`.weight` and `.bias` of quantized layers: callable, readable as tensors, and invisible to TorchScript."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantization.nn import dynamic, quantized
from quantization.nn.weight_view import WeightView
from quantization.qconfig import default_dynamic_qconfig
from tests.quantization.nn.weighted_cases import CASES, Case, each, fill, scripted


@each([case for case in CASES if "float16" not in case.name])
def test_view_agrees_with_the_unpacked_tensor(case: Case) -> None:
    module = fill(case.ours())
    for view in (module.weight, module.bias):
        tensor = view()
        if tensor is None:
            continue
        assert (view.dtype, view.device, view.shape) == (tensor.dtype, tensor.device, tensor.shape)
        assert (view.ndim, view.numel(), view.size(0)) == (tensor.ndim, tensor.numel(), tensor.size(0))
    assert module.weight.requires_grad is False


def test_layer_without_bias_gives_none() -> None:
    assert quantized.Linear(2, 3, bias_=False).bias() is None
    assert quantized.Conv1d(2, 3, 1, bias=False).bias() is None


def test_torch_functions_take_the_view_as_a_float_tensor() -> None:
    module = fill(dynamic.Linear(4, 3))
    x = torch.randn(2, 4)
    expected = F.linear(x, module.weight().dequantize(), module.bias())
    assert torch.equal(F.linear(x, module.weight, module.bias), expected)
    assert torch.equal(F.linear(x, weight=module.weight, bias=module.bias), expected)
    assert torch.equal(
        torch.cat([module.weight, module.weight]), torch.cat([module.weight().dequantize()] * 2)
    )


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = quantized.Linear(2, 2).weight.no_such_thing


def test_view_is_copied_with_care() -> None:
    view = fill(quantized.Linear(2, 2)).weight
    assert isinstance(view, WeightView)
    assert torch.equal(copy.copy(view)().int_repr(), view().int_repr())
    assert repr(view) == repr(view())


def test_script_of_a_layer_ignores_the_view() -> None:
    model = nn.Sequential(fill(dynamic.Linear(4, 3)), nn.ReLU())
    x = torch.randn(2, 4)
    for way, script in scripted(model):
        assert torch.equal(script(x), model(x)), way


def swapped(module: nn.Module) -> Any:
    """Replace each `nn.Linear` inside, as `quantize_dynamic` does."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            child.qconfig = default_dynamic_qconfig
            setattr(module, name, dynamic.Linear.from_float(child))
        else:
            swapped(child)
    return module


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "dense"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "time-first"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_transformer_encoder_runs_in_eval_without_grad(masked: bool, batch_first: bool, nested: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)
    nested = nested and batch_first  # torch warns about the combination it does not support
    model = swapped(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)).eval()
    x = torch.randn(3, 5, 16)
    batch, length = (3, 5) if batch_first else (5, 3)
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0, -1] = masked
    arguments = {"src_key_padding_mask": mask} if masked else {}
    # With gradients on, torch never takes the fast path: what it computes then is the slow path's answer.
    slow = model(x, **arguments)
    with torch.no_grad():
        fast = model(x, **arguments)
    torch.testing.assert_close(fast, slow.detach(), atol=1e-4, rtol=1e-4)
