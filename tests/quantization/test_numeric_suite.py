"""The numeric suite: the same keys and tensors as torch.ao's, on models that both libraries convert alike."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import quantization as q
from quantization import numeric_suite
from quantization.nn import functional_modules, quantized
from tests.parity.libraries import OURS, Library, assert_same, on_both


def suite(library: Library) -> Any:
    return numeric_suite if library is OURS else importlib.import_module("torch.ao.ns._numeric_suite")


class Net(nn.Module):
    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant = library.q.QuantStub()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.seq = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardswish())
        self.add = library.FloatFunctional()
        self.fc = nn.Linear(4, 2)
        self.dequant = library.q.DeQuantStub()

    def forward(self, x):
        y = self.seq(self.relu(self.bn(self.conv(self.quant(x)))))
        return self.dequant(self.fc(self.add.add(y, y).mean((2, 3))))


def static_pair(library: Library, fuse: bool = True) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model = Net(library).eval()
    if fuse:
        model = library.q.fuse_modules(model, ["conv", "bn", "relu"])
    model.qconfig = library.q.get_default_qconfig("qnnpack")
    prepared = library.q.prepare(model)
    x = torch.randn(1, 3, 4, 4)
    prepared(x)
    return model, library.q.convert(prepared), x


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.lstm = nn.LSTM(3, 4, 2, bidirectional=True)
        self.gru = nn.GRU(8, 3)
        self.fc = nn.Linear(3, 2)
        self.cell = nn.LSTMCell(2, 3)

    def forward(self, i):
        return self.cell(self.fc(self.gru(self.lstm(self.emb(i))[0])[0])[0])[0]


def dynamic_pair(library: Library) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model = Sequence().eval()
    return model, library.q.quantize_dynamic(model), torch.tensor([[1, 2], [3, 0], [4, 1]])


def same(ours: Any, expected: Any) -> None:
    """Equal keys and tensors; the order of keys is no part of it."""
    assert set(ours) == set(expected)
    for key in expected:
        for side in ("float", "quantized"):
            assert_same(ours[key][side], expected[key][side], f"{key}.{side}")


@pytest.mark.parametrize("pair", [static_pair, dynamic_pair])
def test_weights_as_in_torch_ao(pair):
    def program(library: Library) -> Any:
        model, converted, _ = pair(library)
        found = suite(library).compare_weights(model.state_dict(), converted.state_dict())
        return {key: {side: value.detach() for side, value in pair.items()} for key, pair in found.items()}

    ours, expected = on_both(program)
    if pair is dynamic_pair:
        # torch.ao takes no notice of directions and compares layer 1 with direction 1 of layer 0.
        expected = {key: value for key, value in expected.items() if "lstm" not in key}
        assert sum("lstm" in key for key in ours) == 4
        for key in [key for key in ours if "lstm" in key]:
            assert q.compute_sqnr(ours[key]["float"], ours[key]["quantized"]) > 30
            del ours[key]
    same(ours, expected)


def test_outputs_as_in_torch_ao():
    def program(library: Library) -> Any:
        model, converted, x = static_pair(library, fuse=False)
        return suite(library).compare_model_outputs(model, converted, x)

    ours, expected = on_both(program)
    same(ours, expected)
    assert "add.stats" in ours


def test_outputs_of_a_fused_module_are_recorded_once():
    model, converted, x = static_pair(OURS)
    found = numeric_suite.compare_model_outputs(model, converted, x)
    assert {key: (len(v["float"]), len(v["quantized"])) for key, v in found.items()}["conv.stats"] == (1, 1)
    assert torch.allclose(
        found["conv.stats"]["float"][0], found["conv.stats"]["quantized"][0].dequantize(), atol=0.1
    )


def test_outputs_of_a_dynamic_model_as_in_torch_ao():
    def program(library: Library) -> Any:
        model, converted, i = dynamic_pair(library)
        found = suite(library).compare_model_outputs(model, converted, i)
        return {key: {side: tuple(values) for side, values in pair.items()} for key, pair in found.items()}

    ours, expected = on_both(program)
    same(ours, expected)


def test_outputs_with_a_list_of_types():
    model, converted, x = static_pair(OURS)
    found = numeric_suite.compare_model_outputs(model, converted, x, allow_list={nn.Linear, quantized.Linear})
    assert "fc.stats" in found and "seq.0.stats" not in found


def test_stubs_as_in_torch_ao():
    def program(library: Library) -> Any:
        model, converted, x = static_pair(library)
        types = {nn.Conv2d, nn.Linear, library.FloatFunctional, library.fused.ConvReLU2d}
        return suite(library).compare_model_stub(model, converted, types, x)

    ours, expected = on_both(program)
    # torch.ao takes a batch for a tuple and records its first image only, where there are more than one.
    assert set(ours) == set(expected) == {"conv.stats", "seq.0.stats", "fc.stats", "add.stats"}
    for key in ours:
        for side in ("float", "quantized"):
            assert_same(ours[key][side][0], expected[key][side][0].reshape(ours[key][side][0].shape), key)


def test_stubs_of_a_dynamic_model_as_in_torch_ao():
    def program(library: Library) -> Any:
        model, converted, i = dynamic_pair(library)
        types = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell}
        return suite(library).compare_model_stub(model, converted, types, i)

    ours, expected = on_both(program)
    assert set(ours) == set(expected)
    for key in ours:
        mine, theirs = ours[key]["float"][0].detach(), expected[key]["float"][0].detach()
        # As above: where torch.ao recorded the first part only, that part is compared.
        assert_same(mine if mine.shape == theirs.shape else mine[0], theirs, key)


def test_stub_wraps_whole_submodules_too():
    model, converted, x = static_pair(OURS)
    copied = copy.deepcopy(converted)
    found = numeric_suite.compare_model_stub(model, copied, {nn.Sequential}, x)
    assert list(found) == ["seq.stats"]
    assert isinstance(copied.seq, numeric_suite.Shadow)
    assert not isinstance(copied.fc, numeric_suite.Shadow)
    assert torch.equal(copied(x), converted(x))


def test_unchanged_modules_get_no_shadow():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    partly = q.quantize_dynamic(model, {"0"})
    found = numeric_suite.compare_model_stub(model, partly, {nn.Linear}, torch.randn(3, 4))
    assert list(found) == ["0.stats"]


@pytest.mark.parametrize("operation", ["add", "mul", "cat", "add_relu", "add_scalar", "mul_scalar"])
def test_shadow_of_functional_modules(operation):
    x = torch.quantize_per_tensor(torch.randn(2, 3), 0.05, 128, torch.quint8)
    operand = {"cat": ([x, x], 1), "add_scalar": (x, 2.0), "mul_scalar": (x, 2.0)}.get(operation, (x, x))
    functional = functional_modules.QFunctional()
    functional.scale, functional.zero_point = 0.1, 128
    shadow = numeric_suite.Shadow(
        functional, functional_modules.FloatFunctional(), numeric_suite.ShadowLogger
    )
    out = getattr(shadow, operation)(*operand)
    assert torch.equal(out.int_repr(), getattr(functional, operation)(*operand).int_repr())
    recorded = shadow.logger.stats
    assert q.compute_sqnr(recorded["float"][0], recorded["quantized"][0]) > 20


def test_attaching_twice_records_once_and_leaves_qconfigs_alone():
    model, converted, x = static_pair(OURS)
    qconfig = model.qconfig
    numeric_suite.prepare_model_outputs(model, converted)
    found = numeric_suite.compare_model_outputs(model, converted, x)
    assert all(len(v["float"]) == len(v["quantized"]) == 1 for v in found.values())
    assert model.qconfig is qconfig
    assert not any("qconfig" in vars(m) for m in converted.modules())


def test_logger_dict_has_names_after_a_prefix():
    model, converted, _ = static_pair(OURS)
    numeric_suite.prepare_model_outputs(model, converted)
    names = set(numeric_suite.get_logger_dict(model, "pre"))
    assert {"pre.fc.stats", "pre.seq.0.stats"} <= names
    alone = numeric_suite.OutputLogger()
    assert list(numeric_suite.get_logger_dict(nn.Sequential(alone))) == ["stats"]


def test_records_survive_operations_in_place():
    logger = numeric_suite.OutputLogger()
    x = torch.ones(2)
    logger(x).zero_()
    assert logger.stats["tensor_val"][0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "names, key, postfix",
    [
        (["conv.0.weight"], "conv.weight", "weight"),
        (["conv.weight", "conv.0.weight"], "conv.weight", "weight"),
        (["a.fc.weight", "b.fc.weight"], "fc.weight", "weight"),
        (["fc.weight"], "module.fc.weight", "weight"),
        (["convx.weight"], "conv.weight", "weight"),
        (["conv.0.1.weight"], "conv.weight", "weight"),
        (["fc.weight"], "fc._packed_params._packed_params", "_packed_params"),
        (["conv.stats"], "conv.0.stats", "stats"),
        (["fc.weight"], "fc.foo", "weight"),
    ],
)
def test_names_match_as_in_torch_ao(names, key, postfix):
    theirs = pytest.importorskip("torch.ao.ns._numeric_suite")
    assert numeric_suite._find_match(names, key, postfix) == theirs._find_match(names, key, postfix)


def test_the_base_logger_is_abstract():
    with pytest.raises(NotImplementedError, match="Logger must define forward"):
        numeric_suite.Logger()(torch.ones(1))
