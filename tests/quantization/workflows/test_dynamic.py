"""quantize_dynamic: one line, and a word wherever it did nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import dynamic


class MyLinear(nn.Linear):
    pass


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4)), nn.Conv1d(1, 1, 1))


def test_one_line():
    quantized = q.quantize_dynamic(model(), {nn.Linear})
    assert type(quantized[0]) is dynamic.Linear
    assert type(quantized[2][0]) is dynamic.Linear
    assert not quantized.training


def test_the_callers_model_is_untouched():
    m = model()
    q.quantize_dynamic(m, {nn.Linear})
    assert type(m[0]) is nn.Linear and m.training and not hasattr(m[0], "qconfig")
    assert q.quantize_dynamic(m, {nn.Linear}, inplace=True) is m
    assert type(m[0]) is dynamic.Linear


def test_a_bare_root_is_swapped():
    assert type(q.quantize_dynamic(nn.Linear(2, 2), {nn.Linear})) is dynamic.Linear


def test_names_and_types_each_with_their_qconfig():
    quantized = q.quantize_dynamic(
        model(), {"0": q.float16_dynamic_qconfig, "2": q.per_channel_dynamic_qconfig}
    )
    assert quantized[0]._packed_params.dtype is torch.float16
    assert quantized[2][0].weight().qscheme() is torch.per_channel_affine


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({nn.Linear, nn.LSTM}, "LSTM matches no module"),
        ({"0", "encoder.0"}, r"'encoder\.0' matches no module"),
        ({nn.Linear, nn.Conv1d}, r"Conv1d has no dynamic counterpart, so '3' \(Conv1d\) stayed float"),
    ],
    ids=["type", "name", "no counterpart"],
)
def test_keys_without_effect_are_named(spec: set[object], said: str):
    with pytest.warns(q.QuantizationWarning, match=said):
        q.quantize_dynamic(model(), spec)
    m = model()
    with pytest.raises(q.QuantizationError, match=said):
        q.quantize_dynamic(m, spec, strict=True, inplace=True)
    assert type(m[0]) is nn.Linear and m.training


def test_nothing_quantized_is_said():
    with pytest.warns(q.QuantizationWarning, match="quantized nothing.*MyLinear"):
        q.quantize_dynamic(nn.Sequential(MyLinear(2, 2)))


def test_an_rnn_is_quantized_when_asked_for():
    recurrent = nn.Sequential(nn.RNN(4, 8), nn.Linear(8, 2))
    quantized = q.quantize_dynamic(nn.ModuleDict({"rnn": recurrent[0]}), {nn.RNN}, strict=True)
    assert type(quantized["rnn"]) is dynamic.RNN
    x = torch.randn(5, 3, 4)
    assert (quantized["rnn"](x)[0] - recurrent[0](x)[0]).abs().max() < 0.1


def test_defaults_that_match_nothing_are_no_news():
    q.quantize_dynamic(model(), strict=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, None], ids=str)
def test_an_unknown_dtype_lists_the_known(dtype: torch.dtype):
    for spec in (None, {nn.Linear}):
        with pytest.raises(ValueError, match=r"torch\.qint8,.*torch\.float16") as caught:
            q.quantize_dynamic(model(), spec, dtype=dtype)
        assert isinstance(caught.value, RuntimeError)  # what torch.ao raises for a set


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_a_transformer_encoder_runs_in_evaluation(batch_first: bool, nested: bool, dtype: torch.dtype):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested and batch_first).eval()
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        quantized = q.quantize_dynamic(encoder, {nn.Linear}, dtype=dtype)
        error = (quantized(x) - encoder(x)).abs().max()
    assert 0 < error < 0.2
    padding = torch.zeros(3, 5, dtype=torch.bool) if batch_first else torch.zeros(5, 3, dtype=torch.bool)
    padding[0, -1] = True
    with torch.no_grad():
        assert quantized(x, src_key_padding_mask=padding).isfinite().all()
