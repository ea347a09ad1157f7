"""The report of what was and was not quantized."""

from __future__ import annotations

import json

import torch
from torch import nn

import quantization as q


def model() -> nn.Sequential:
    return nn.Sequential(
        q.QuantStub(), nn.Sequential(nn.Linear(2, 4), nn.ReLU()), nn.GELU(), nn.Linear(4, 2), q.DeQuantStub()
    ).eval()


def converted() -> nn.Module:
    m = q.fuse_modules(model(), [["1.0", "1.1"]])
    m.qconfig = q.get_default_qconfig("x86")
    m[2] = nn.Tanhshrink()
    m[3].qconfig = None
    prepared = q.prepare(m)
    prepared(torch.randn(8, 2))
    return q.convert(prepared)


def rows(m: nn.Module) -> dict[str, q.summary.__class__]:
    return {row.name: row for row in q.summary(m).rows}


def test_a_float_model_is_all_float():
    summary = q.summary(model())
    assert [row.name for row in summary.rows] == ["0", "1.0", "1.1", "2", "3", "4"]
    assert summary.counts() == {"quantized": 0, "as is": 0, "prepared": 0, "float": 6}


def test_a_prepared_model_says_which_observer_has_seen_data():
    m = model()
    m.qconfig = q.get_default_qconfig("x86")
    prepared = q.prepare(m)
    row = rows(prepared)["3"]
    assert (row.state, row.activation, row.note) == (
        "prepared",
        "quint8 per_tensor_affine",
        "its observer has seen no data",
    )
    prepared[3](torch.randn(8, 4))
    assert rows(prepared)["3"].note == ""


def test_a_qat_model_shows_the_weights_to_be():
    m = model().train()
    m.qconfig = q.get_default_qat_qconfig("x86")
    row = rows(q.prepare_qat(m))["3"]
    assert (row.float_type, row.state, row.weight) == ("Linear", "prepared", "qint8 per_channel_symmetric")


def test_a_converted_model_shows_what_became_of_each_module():
    table = rows(converted())
    fused = table["1.0"]
    assert (fused.float_type, fused.now, fused.state) == ("LinearReLU", "QuantizedLinearReLU", "quantized")
    assert fused.weight == "qint8 per_channel_affine"
    assert fused.activation.startswith("quint8 per_tensor_affine scale=")
    assert (table["3"].state, table["3"].note) == ("float", "no qconfig")
    assert "no counterpart in the mapping for Tanhshrink" in table["2"].note
    assert (table["1.1"].now, table["1.1"].state) == ("Identity", "as is")
    assert not any("_packed_params" in name for name in table)


def test_a_subclass_gets_a_hint():
    class MyLinear(nn.Linear):
        pass

    m = q.quantize_dynamic(nn.Sequential(MyLinear(2, 2), nn.Linear(2, 2)))
    assert rows(m)["0"].note == "a subclass of Linear, but tables match exact types: none for MyLinear"


def test_a_tied_module_has_a_row_under_each_name():
    linear = nn.Linear(2, 2)
    m = q.quantize_dynamic(nn.Sequential(linear, linear), {nn.Linear})
    assert [row.state for row in q.summary(m).rows] == ["quantized", "quantized"]


def test_a_quantized_root_has_one_row():
    assert [row.name for row in q.summary(q.quantize_dynamic(nn.Linear(2, 2), {nn.Linear})).rows] == [
        "<root>"
    ]


def test_dynamic_activations_have_no_fixed_range():
    m = q.quantize_dynamic(nn.ModuleDict({"fc": nn.Linear(2, 2), "rnn": nn.GRU(2, 2)}))
    table = rows(m)
    assert table["fc"].activation == table["rnn"].activation == "quantized per call"
    assert table["rnn"].weight.startswith("qint8")


def test_float16_weights():
    m = q.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.float16)
    assert (rows(m)["0"].weight, rows(m)["0"].activation) == ("float16", "float")


def test_it_prints_as_a_table_and_is_plain_data():
    summary = q.summary(converted())
    lines = str(summary).splitlines()
    assert lines[0].split()[:3] == ["name", "float", "type"]
    assert len(lines) == len(summary.rows) + 3
    assert lines[-1] == "3 quantized, 1 as is, 2 float"
    assert json.loads(json.dumps(summary.to_dicts()))[0]["name"] == "0"
    html = summary._repr_html_()
    assert html.count("<tr>") == len(summary.rows) + 1
    assert "QuantizedLinearReLU" in html


def test_an_empty_model():
    assert "no modules" in str(q.summary(nn.Sequential()))
