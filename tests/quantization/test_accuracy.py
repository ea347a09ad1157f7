"""The error per layer: numbers against their definition, and the layer that is to blame found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import functional_modules


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant = q.QuantStub()
        self.first = nn.Linear(8, 8)
        self.relu = nn.ReLU()
        self.second = nn.Linear(8, 8)
        self.add = functional_modules.FloatFunctional()
        self.last = nn.Linear(8, 2)
        self.dequant = q.DeQuantStub()

    def forward(self, x):
        y = self.relu(self.first(self.quant(x)))
        return self.dequant(self.last(self.add.add(self.second(y), y)))


def pair(spoil=None):
    model = q.fuse_modules(Net().eval(), ["first", "relu"])
    model.qconfig = q.default_qconfig
    if spoil:
        three_bits = q.MinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-4, quant_max=3
        )
        model.get_submodule(spoil).qconfig = q.QConfig(activation=q.default_observer, weight=three_bits)
    prepared = q.prepare(model)
    data = [torch.randn(32, 8) for _ in range(2)]
    for x in data:
        prepared(x)
    return model, q.convert(prepared), data


def test_metrics_match_their_definitions():
    x, y = torch.randn(5), torch.randn(5)
    noise = (x - y).square().sum()
    assert q.compute_sqnr(x, y).item() == pytest.approx(10 * math.log10(x.square().sum() / noise), rel=1e-4)
    assert q.compute_normalized_l2_error(x, y).item() == pytest.approx(
        (noise / x.square().sum()).sqrt().item()
    )
    assert q.compute_cosine_similarity(x, y).item() == pytest.approx(
        (x @ y / x.norm() / y.norm()).item(), abs=1e-6
    )
    assert q.compute_sqnr(x, x).item() == math.inf


def test_metrics_take_quantized_tensors_and_agree_with_torch_ao():
    theirs = pytest.importorskip("torch.ao.ns.fx.utils")
    x = torch.randn(5, 3)
    y = torch.quantize_per_tensor(x, 0.1, 128, torch.quint8)
    assert torch.allclose(q.compute_sqnr(x, y), theirs.compute_sqnr(x, y.dequantize()))
    assert torch.allclose(
        q.compute_normalized_l2_error(x, y), theirs.compute_normalized_l2_error(x, y.dequantize())
    )


def test_rows_of_a_static_model():
    model, quantized, data = pair()
    table = q.compare(model, quantized, data)
    assert [row.name for row in table.rows] == ["quant", "first", "second", "last"]
    assert [row.kind for row in table.rows][1] == "QuantizedLinearReLU"
    assert all(20 < row.own < 70 for row in table.rows)
    assert math.isnan(table.rows[0].weight) and all(30 < row.weight < 70 for row in table.rows[1:])
    assert table.rows[0].own == table.rows[0].output  # nothing before it


def test_output_error_is_that_of_the_outputs():
    model, quantized, data = pair()
    table = {row.name: row for row in q.compare(model, quantized, data).rows}
    expected = torch.cat([model(x) for x in data])
    got = torch.cat([quantized(x) for x in data])
    assert table["last"].output == pytest.approx(q.compute_sqnr(expected, got).item(), abs=1e-3)


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_the_layer_that_loses_most_is_named(name):
    torch.manual_seed(0)
    model, quantized, data = pair(spoil=name)
    table = q.compare(model, quantized, data)
    torch.manual_seed(0)
    clean = {row.name: row for row in q.compare(*pair()).rows}
    assert table.worst(1) == [name]
    errors = {row.name: row for row in table.rows}
    assert errors[name].weight < 25
    # Later layers suffer from it, but the blame is not theirs.
    assert errors["last"].output < clean["last"].output - 3
    assert all(row.own > 30 for row in table.rows if row.name != name)


def test_both_models_are_left_alone():
    model, quantized, data = pair()
    hooks = [len(m._forward_hooks) for m in (*model.modules(), *quantized.modules())]
    names = [n for n, _ in quantized.named_modules()]
    q.compare(model, quantized, data)
    assert [len(m._forward_hooks) for m in (*model.modules(), *quantized.modules())] == hooks
    assert [n for n, _ in quantized.named_modules()] == names


def test_hooks_go_when_a_model_fails():
    model, quantized, _ = pair()
    with pytest.raises(RuntimeError):
        q.compare(model, quantized, [torch.randn(2, 5)])
    assert not any(m._forward_hooks for m in (*model.modules(), *quantized.modules()))


def test_dynamic_model_with_states_and_several_arguments():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x, scale):
            return self.fc(self.lstm(x)[0]) * scale

    model = Recurrent().eval()
    table = q.compare(model, q.quantize_dynamic(model), [(torch.randn(3, 2, 4), 2.0)])
    assert [row.name for row in table.rows] == ["lstm", "fc"]
    assert all(row.own > 20 for row in table.rows)


def test_plain_data_and_table():
    model, quantized, data = pair()
    table = q.compare(model, quantized, data)
    assert [set(row) for row in table.to_dicts()] == [{"name", "kind", "weight", "own", "output"}] * 4
    lines = str(table).splitlines()
    assert lines[0].split() == ["name", "kind", "weight", "own", "output"]
    assert len(lines) == 5 and lines[2].startswith("first")


def test_nothing_to_compare():
    model, quantized, data = pair()
    with pytest.raises(q.InvalidRequest, match="no data"):
        q.compare(model, quantized, [])
    with pytest.raises(q.InvalidRequest, match="found no layer"):
        q.compare(nn.Sequential(nn.Linear(8, 2)), quantized, data)
