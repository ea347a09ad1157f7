"""A converted layer names its place in the model when it is given what it cannot take."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import quantized
from tests.support import quiet_jit

X = torch.randn(2, 3, 2, 2)


def converted() -> nn.Module:
    model = nn.Sequential(
        q.QuantStub(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish()), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    prepared(X)
    return q.convert(prepared)


@pytest.mark.parametrize("path", ["0", "1.0", "1.1", "3"])
def test_the_path_is_in_the_error(path: str):
    model = copy.deepcopy(converted())
    wrong = model[0](X) if path == "0" else X  # Quantize takes float, all others quantized tensors
    with pytest.raises(q.QuantizationError, match=rf"^while running '{path}': .*quantized"):
        model.get_submodule(path)(wrong)


def test_a_wrong_size_names_the_layer_that_cannot_take_it():
    with pytest.raises(q.QuantizationError, match=r"'1\.0'.*must have size 3 in dimension 1"):
        converted()(torch.randn(2, 5, 2, 2))


def test_a_dynamic_layer_too():
    model = q.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    with pytest.raises(q.QuantizationError, match=r"'0'.*size 3"):
        model(torch.randn(2, 4))


def test_without_a_model_there_is_no_place():
    with pytest.raises(q.QuantizationError, match=r"^Input to 'Linear'"):
        quantized.Linear(2, 2)(torch.randn(1, 2))


def test_torch_s_own_errors_keep_their_type_and_get_a_note():
    model = converted()
    model[1][0].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        model(X)
    assert "'1.0'" in str(getattr(caught.value, "__notes__", "'1.0'"))


def test_scripting_sees_none_of_it():
    model = converted()
    with quiet_jit():
        assert torch.equal(torch.jit.script(model)(X).int_repr(), model(X).int_repr())
