"""A module used twice in one forward pass is counted, noted in the summary and warned about in convert."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import functional_modules
from quantization.workflows.reuse import runs_per_forward, shared_ranges


class Twice(nn.Module):
    def __init__(self, functional_calls: int = 2, layer_calls: int = 1) -> None:
        super().__init__()
        self.quant = q.QuantStub()
        self.linear = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.other = nn.Linear(4, 4)
        self.add = functional_modules.FloatFunctional()
        self.dequant = q.DeQuantStub()
        self.times = functional_calls, layer_calls

    def forward(self, x):
        x = self.quant(x)
        for _ in range(self.times[1]):
            x = self.linear(x)
        y = self.other(x)
        for _ in range(self.times[0]):
            y = self.add.add(x, y)
        return self.dequant(y)


def prepared(model, batches=3):
    model = q.fuse_modules(model.eval(), ["linear.0", "linear.1"])
    model.qconfig = q.default_qconfig
    model = q.prepare(model)
    for _ in range(batches):
        model(torch.randn(8, 4))
    return model


@pytest.mark.parametrize(
    "functional, layer, expected",
    [
        (1, 1, {}),
        (2, 1, {"add": 2}),
        (3, 1, {"add": 3}),
        (1, 2, {"linear.0": 2}),
        (2, 2, {"add": 2, "linear.0": 2}),
    ],
)
def test_calls_are_counted(functional, layer, expected):
    assert runs_per_forward(prepared(Twice(functional, layer))) == expected


def test_convert_warns_and_converts_all_the_same():
    model = prepared(Twice())
    with pytest.warns(q.QuantizationWarning, match=r"'add' \(2 times\).*an instance of its own"):
        quantized = q.convert(model)
    assert type(quantized.add) is functional_modules.QFunctional
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q.convert(prepared(Twice(1)))


def test_an_ordinary_layer_used_twice_is_in_the_summary_only():
    model = Twice(1)
    model.linear = nn.Linear(4, 4)
    model.times = 1, 2
    model.eval().qconfig = q.default_qconfig
    model = q.prepare(model)
    model(torch.randn(8, 4))
    notes = {row.name: row.note for row in q.summary(model).rows}
    assert notes["linear"] == "runs 2 times per forward pass, with one range for all"
    assert notes["other"] == notes["add"] == ""
    assert shared_ranges(model) is None


def test_summary_names_the_functional_module():
    notes = {row.name: row.note for row in q.summary(prepared(Twice(3))).rows}
    assert notes["add"] == "runs 3 times per forward pass, with one range for all"


def test_a_branch_taken_now_and_then_is_no_reuse():
    model = prepared(Twice(1))
    model.other(torch.randn(8, 4))
    assert runs_per_forward(model) == {}


def test_counts_are_in_no_checkpoint_and_follow_copies():
    model = prepared(Twice())
    assert not any("calls" in key for key in model.state_dict())
    assert runs_per_forward(copy.deepcopy(model)) == {"add": 2}


def test_training_counts_too():
    model = Twice().train()
    model.qconfig = q.get_default_qat_qconfig("qnnpack")
    model = q.prepare_qat(model)
    for _ in range(4):
        model(torch.randn(8, 4)).sum().backward()
    assert runs_per_forward(model) == {"add": 2}


def test_converted_and_float_models_have_no_counts():
    assert runs_per_forward(Twice()) == {}
    assert runs_per_forward(q.convert(prepared(Twice(1)))) == {}
