"""convert(is_reference=True): a model in float arithmetic with rounded weights, which runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import reference
from tests.parity.libraries import OURS
from tests.parity.models import MODELS, build


def calibrated(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    model.qconfig = q.get_default_qconfig("x86")
    prepared = q.prepare(model)
    x = torch.randn(shape)
    prepared(x)
    return prepared, x


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("model_class", MODELS, ids=lambda c: c.__name__)
def test_it_runs_near_the_float_model(model_class: type, fuse: bool):
    model = build(model_class, OURS).eval()
    if fuse:
        model = q.fuse_modules(model, model_class.fusions)
    prepared, x = calibrated(model, model_class.shape)
    converted = q.convert(prepared, is_reference=True)
    output, expected = converted(x), model(x)
    assert output.dtype is torch.float32
    error = (output - expected).norm() / expected.norm()
    assert 0 < error < 0.1  # weights and the input are rounded to eight bits
    kinds = [type(m) for m in converted.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    assert kinds and all(kind.__module__ == reference.__name__ for kind in kinds)


def test_the_input_is_rounded_as_the_quantized_model_rounds_it():
    prepared, x = calibrated(nn.Sequential(q.QuantStub(), nn.Linear(3, 2), q.DeQuantStub()).eval(), (8, 3))
    quantized, converted = q.convert(prepared), q.convert(prepared, is_reference=True)
    assert torch.equal(converted[0](x), quantized[0](x).dequantize())
    weight = quantized[1].weight().dequantize()
    assert torch.equal(converted[1].get_weight(), weight)


def test_recurrent_layers_and_attention_run_by_their_parts():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = q.QuantStub(), q.DeQuantStub()
            self.rnn, self.attention = nn.LSTM(4, 8), nn.MultiheadAttention(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.rnn(self.quant(x))[0]
            return self.dequant(self.attention(x, x, x)[0])

    model = Net().eval()
    prepared, x = calibrated(model, (5, 3, 4))
    converted = q.convert(prepared, is_reference=True)
    assert (converted(x) - model(x)).abs().max() < 0.05
    assert any(isinstance(module, reference.Linear) for module in converted.rnn.modules())
    again = copy.deepcopy(converted)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again(x), converted(x))


def test_a_table_of_torch_ao_keeps_its_quantize():
    prepared, x = calibrated(nn.Sequential(q.QuantStub(), nn.ReLU(), q.DeQuantStub()).eval(), (8, 3))
    mapping = q.get_default_static_quant_reference_module_mappings()
    assert q.convert(prepared, mapping=mapping)[0](x).is_quantized
